// What a service tells the manager that started it, as systemd's sd_notify(3) has it: one datagram
// to the socket named by $NOTIFY_SOCKET.
#pragma once

#include <string_view>

namespace drover {

// Lines of NAME=VALUE, such as "READY=1\nSTATUS=Answering". Nothing happens where nobody listens: a
// service must not end because its manager cannot be told. Any thread.
void tell_service_manager(std::string_view lines);

}  // namespace drover
