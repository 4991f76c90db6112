// Which addresses are of the public internet. A server that asks others at its clients' wish must
// ask no other: its own machine, its neighbours and the cloud's helpers trust whoever is inside.
#pragma once

#include <sys/socket.h>

namespace drover {

// Whether this is an ordinary address that everybody on the internet can reach: neither private,
// loopback, link-local, multicast, shared, reserved, for documentation, nor a way to write one of
// those inside of another. False for what is neither IPv4 nor IPv6. Pure, thread-safe.
bool is_public_address(const sockaddr& address);

}  // namespace drover
