#include "cli/service_manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/support/temp_folder.h"

namespace drover {
namespace {

// A manager that listens at a path, or with a name of its own where it begins with @.
class Manager {
 public:
  explicit Manager(const std::string& name) : socket_(::socket(AF_UNIX, SOCK_DGRAM, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name.front() == '@') address.sun_path[0] = '\0';
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    bound_ = ::bind(socket_, reinterpret_cast<const sockaddr*>(&address), size) == 0;
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  }
  ~Manager() {
    ::unsetenv("NOTIFY_SOCKET");
    ::close(socket_);
  }
  Manager(const Manager&) = delete;
  Manager& operator=(const Manager&) = delete;

  bool bound() const { return bound_; }
  // What was said, or nothing: telling is done when it returns.
  std::string heard() const {
    char bytes[256];
    const auto size = ::recv(socket_, bytes, sizeof(bytes), MSG_DONTWAIT);
    return size < 0 ? "" : std::string(bytes, static_cast<size_t>(size));
  }

 private:
  int socket_;
  bool bound_;
};

TEST(ServiceManager, IsToldAtAPath) {
  const testing::TempFolder folder;
  const Manager manager((folder / "notify").string());
  ASSERT_TRUE(manager.bound());
  tell_service_manager("READY=1\nSTATUS=Answering");
  EXPECT_EQ(manager.heard(), "READY=1\nSTATUS=Answering");
  EXPECT_EQ(manager.heard(), "");
}

TEST(ServiceManager, IsToldAtANameWithoutAFile) {
  const Manager manager("@drover-test-" + std::to_string(::getpid()));
  ASSERT_TRUE(manager.bound());
  tell_service_manager("STOPPING=1");
  EXPECT_EQ(manager.heard(), "STOPPING=1");
}

TEST(ServiceManager, ThatIsNotThereChangesNothing) {
  tell_service_manager("READY=1");
  for (const std::string& name :
       {std::string("/no/such/socket"), std::string(), std::string("x"), std::string(500, 'x')}) {
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
    EXPECT_NO_THROW(tell_service_manager("READY=1"));
  }
  ::unsetenv("NOTIFY_SOCKET");
}

}  // namespace
}  // namespace drover
