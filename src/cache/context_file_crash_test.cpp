// What is left of a context file when things go wrong while it is written: killed processes, power
// failures, full disks, every call that can fail. The program's calls into the system go through
// the functions below, which can fail on demand and keep a log.
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "base/mapped_file.h"
#include "cache/context_file_fixture.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace drover {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempFolder;

// One thing that was done to the folder.
struct Step {
  enum Kind { kCreate, kWrite, kTruncate, kFlush, kRename, kRemove, kFlushFolder } kind;
  int file = 0;  // an inode by the order of appearance
  std::string name;
  std::string to;  // kRename
  uint64_t offset = 0;
  std::string bytes;
};

struct Calls {
  bool on = false;
  std::string folder;  // calls on others are let through
  int fail_at = -1;    // this call fails,
  int code = EIO;      // with this errno
  int count = 0;
  std::string failed;  // its name
  std::vector<Step> log;
  std::map<uint64_t, int> inodes;

  void watch(const std::string& where, int call = -1, int with = EIO) {
    on = true;
    folder = where;
    fail_at = call;
    code = with;
  }
  // True if this call is to fail.
  bool fails(const char* name) {
    if (count++ != fail_at) return false;
    failed = name;
    errno = code;
    return true;
  }
  bool watches(const char* path) const { return on && std::string_view(path).starts_with(folder); }
  bool watches(int fd) const { return on && watches(name_of(fd).c_str()); }
  static std::string name_of(int fd) {
    char buffer[4096];
    const ssize_t n =
        ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), buffer, sizeof(buffer));
    return {buffer, static_cast<size_t>(std::max<ssize_t>(0, n))};
  }
  int inode(int fd) {
    struct stat info {};
    ::fstat(fd, &info);
    return inodes.emplace(info.st_ino, static_cast<int>(inodes.size())).first->second;
  }
};
Calls calls;

}  // namespace
}  // namespace drover

using drover::calls;
using drover::Step;

// The program's own come before the library's. Flags and modes are passed on as they are.
extern "C" {
int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const int mode = (flags & O_CREAT) != 0 ? va_arg(list, int) : 0;
  va_end(list);
  if (!calls.watches(path)) {
    return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
  }
  if (calls.fails("open")) return -1;
  struct stat info {};
  const bool fresh = (flags & O_CREAT) != 0 && ::stat(path, &info) != 0;
  const int fd = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
  if (fresh && fd >= 0) calls.log.push_back({Step::kCreate, calls.inode(fd), path, {}, 0, {}});
  return fd;
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  if (calls.watches(fd)) {
    if (calls.fails("pwrite")) return -1;
    calls.log.push_back({Step::kWrite,
                         calls.inode(fd),
                         {},
                         {},
                         static_cast<uint64_t>(offset),
                         std::string(static_cast<const char*>(data), bytes)});
  }
  return syscall(SYS_pwrite64, fd, data, bytes, offset);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  if (calls.watches(fd) && calls.fails("pread")) return -1;
  return syscall(SYS_pread64, fd, data, bytes, offset);
}
int fdatasync(int fd) {
  if (calls.watches(fd)) {
    if (calls.fails("fdatasync")) return -1;
    calls.log.push_back({Step::kFlush, calls.inode(fd), {}, {}, 0, {}});
  }
  return 0;  // kills need no flush, and power fails in the log only
}
int fsync(int fd) {
  if (calls.watches(fd)) {
    if (calls.fails("fsync")) return -1;
    struct stat info {};
    ::fstat(fd, &info);
    calls.log.push_back({S_ISDIR(info.st_mode) ? Step::kFlushFolder : Step::kFlush,
                         calls.inode(fd),
                         {},
                         {},
                         0,
                         {}});
  }
  return 0;
}
int ftruncate(int fd, off_t size) noexcept {
  if (calls.watches(fd)) {
    if (calls.fails("ftruncate")) return -1;
    calls.log.push_back(
        {Step::kTruncate, calls.inode(fd), {}, {}, static_cast<uint64_t>(size), {}});
  }
  return static_cast<int>(syscall(SYS_ftruncate, fd, size));
}
int rename(const char* from, const char* to) noexcept {
  if (calls.watches(from)) {
    if (calls.fails("rename")) return -1;
    calls.log.push_back({Step::kRename, 0, from, to, 0, {}});
  }
  return static_cast<int>(syscall(SYS_rename, from, to));
}
int unlink(const char* path) noexcept {
  if (calls.watches(path)) {
    if (calls.fails("unlink")) return -1;
    calls.log.push_back({Step::kRemove, 0, path, {}, 0, {}});
  }
  return static_cast<int>(syscall(SYS_unlink, path));
}
int flock(int fd, int operation) noexcept {
  if (calls.watches(fd) && calls.fails("flock")) return -1;
  return static_cast<int>(syscall(SYS_flock, fd, operation));
}
int fchmod(int fd, mode_t mode) noexcept {
  if (calls.watches(fd) && calls.fails("fchmod")) return -1;
  return static_cast<int>(syscall(SYS_fchmod, fd, mode));
}
}

namespace drover {
namespace {

const CacheLayout kLayout = small_layout();

// What a save may meet, and what it makes of it.
struct Change {
  std::string_view name;
  std::optional<Story> before;
  Story after;
};
std::vector<Change> changes() {
  return {{"a new file", std::nullopt, story(900)},
          {"a longer text", story(900), story(1700)},
          {"a beginning", story(1700), story(900)},
          {"another text", story(900), story(700, 5)}};
}

bool holds(const fs::path& path, const std::optional<Story>& text) {
  if (!text) return !fs::exists(path);
  return fs::exists(path) && difference(*load(path, kLayout), kLayout, *text).empty();
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    out.push_back(entry.path().filename().string());
  }
  return out;
}

// Runs a body in a process of its own; its failures are ours.
void in_a_process(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      body();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    std::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(ContextFileFaults, EveryCallThatFailsGivesATypedErrorAndLeavesTheFileWhole) {
  int tried = 0;
  std::map<std::string, int> met;
  for (const int code : {EIO, ENOSPC, EACCES, EROFS, EINTR}) {
    for (const Change& change : changes()) {
      for (int k = 0;; ++k) {
        const TempFolder folder(TempFolder::fast_parent());
        const fs::path path = folder / "a.ctx";
        if (change.before) save(path, kLayout, *change.before);
        calls.watch(folder.path().string(), k, code);
        std::optional<Error> error;
        try {
          save(path, kLayout, change.after);
        } catch (const Error& thrown) {
          error = thrown;
        }
        const std::string failed = calls.failed;
        calls = {};
        if (failed.empty()) {
          EXPECT_FALSE(error);
          break;
        }
        ++tried;
        ++met[failed];
        const std::string what = fmt::format("{}: {} fails with {}: {}", change.name, failed,
                                             strerror(code), error ? error->what() : "no error");
        SCOPED_TRACE(what);
        if (error) {
          const ErrorKind kind = error->kind();
          EXPECT_TRUE(kind == ErrorKind::kCannotWrite || kind == ErrorKind::kIo ||
                      kind == ErrorKind::kPermission);
          EXPECT_NE(error->message().find("a.ctx"), std::string::npos);
          // Where the header is already written, the new text may be what counts.
          EXPECT_TRUE(holds(path, change.before) || holds(path, change.after));
        } else {
          EXPECT_TRUE(holds(path, change.after));
        }
        // Only a file whose removal failed may be left.
        if (failed != "unlink" && failed != "ftruncate") {
          for (const std::string& name : names_in(folder.path())) {
            EXPECT_TRUE(name == "a.ctx" || (name == "a.ctx.lock" && failed == "flock")) << name;
          }
        }
        save(path, kLayout, change.after);
        EXPECT_TRUE(holds(path, change.after));
        EXPECT_EQ(names_in(folder.path()).size(), 1u);
      }
    }
  }
  EXPECT_GT(tried, 300);
  for (const char* name :
       {"open", "pwrite", "pread", "fdatasync", "fsync", "rename", "unlink", "flock", "fchmod"}) {
    EXPECT_GT(met[name], 0) << name;
  }
}

// A disk that keeps of what was not flushed what it likes.
class Disk {
 public:
  Disk(const fs::path& folder, const std::string& path) : path_(path) {
    if (fs::exists(folder / "a.ctx")) {
      names_[path] = -1;
      durable_[-1] = read_file(folder / "a.ctx", size_t{1} << 30);
    }
  }

  // Replays a log up to a power failure; `keep` says whether a piece that was not flushed arrived.
  // Nothing if there is no file of that name then.
  static std::optional<std::string> after(Disk disk, std::span<const Step> log, int known,
                                          const std::function<bool()>& keep) {
    for (const Step& step : log) {
      const int file = step.file == known ? -1 : step.file;
      switch (step.kind) {
        case Step::kCreate:
          disk.created_[step.name] = file;
          break;
        case Step::kWrite:
        case Step::kTruncate:
          disk.pending_.push_back(step);
          disk.pending_.back().file = file;
          break;
        case Step::kFlush:
          disk.settle(file, [] { return true; });
          break;
        case Step::kRename:
          disk.renames_.push_back(step);
          break;
        case Step::kFlushFolder:
          disk.rename_all([] { return true; });
          break;
        case Step::kRemove:
          break;  // the lock, or what is half; neither is read
      }
    }
    disk.rename_all(keep);
    const auto found = disk.names_.find(disk.path_);
    if (found == disk.names_.end()) return std::nullopt;
    disk.settle(found->second, keep);
    return disk.durable_[found->second];
  }

 private:
  void settle(int file, const std::function<bool()>& keep) {
    std::string& to = durable_[file];
    for (const Step& step : pending_) {
      if (step.file != file) continue;
      if (step.kind == Step::kTruncate) {
        if (keep()) to.resize(step.offset);
        continue;
      }
      // Sectors of 512 bytes arrive one by one.
      for (size_t at = 0; at < step.bytes.size(); at += 512) {
        if (!keep()) continue;
        const size_t size = std::min<size_t>(512, step.bytes.size() - at);
        if (to.size() < step.offset + at + size) to.resize(step.offset + at + size);
        to.replace(step.offset + at, size, step.bytes, at, size);
      }
    }
    std::erase_if(pending_, [&](const Step& step) { return step.file == file; });
  }
  void rename_all(const std::function<bool()>& keep) {
    for (const Step& step : renames_) {
      if (keep()) names_[step.to] = created_.at(step.name);
    }
    renames_.clear();
  }

  std::string path_;
  std::map<std::string, int> names_;    // on the disk
  std::map<std::string, int> created_;  // in the folder as programs see it
  std::map<int, std::string> durable_;
  std::vector<Step> pending_, renames_;
};

TEST(ContextFileFaults, APowerFailureAtAnyMomentLeavesOldOrNew) {
  std::mt19937 random(4);
  int tried = 0, old_ones = 0, new_ones = 0;
  for (const Change& change : changes()) {
    const TempFolder folder(TempFolder::fast_parent());
    const fs::path path = folder / "a.ctx";
    if (change.before) save(path, kLayout, *change.before);
    const Disk disk(folder.path(), path.string());
    calls.watch(folder.path().string());
    int known = -1;
    if (change.before) {
      const int fd = ::open(path.c_str(), O_RDONLY);
      known = calls.inode(fd);
      ::close(fd);
    }
    save(path, kLayout, change.after);
    const size_t first_save = calls.log.size();
    const Story last = turned(change.after, change.after.length() - 10, 600, 9);
    save(path, kLayout, last);
    const std::vector<Step> log = calls.log;
    calls = {};

    const TempFolder after(TempFolder::fast_parent());
    for (size_t cut = 0; cut <= log.size(); ++cut) {
      for (int i = 0; i < 40; ++i) {
        // All of it, nothing, and anything between.
        const unsigned share = i == 0 ? 0 : i == 1 ? 256 : random() % 257;
        const auto content = Disk::after(disk, std::span(log).first(cut), known,
                                         [&] { return random() % 256 < share; });
        const fs::path there = after / "a.ctx";
        fs::remove(there);
        if (content) after.write("a.ctx", *content);
        // What save() returned from is there for good.
        const bool in_first = cut < first_save;
        const bool is_new = holds(there, in_first ? std::optional(change.after) : last);
        const bool is_old =
            !is_new && holds(there, in_first ? change.before : std::optional(change.after));
        ASSERT_TRUE(is_new || is_old) << change.name << " step " << cut << " of " << log.size();
        ASSERT_TRUE(is_new || cut < log.size()) << change.name;
        ++(is_new ? new_ones : old_ones);
        ++tried;
        // And one can go on from there.
        if (i < 4) {
          save(there, kLayout, story(1800));
          ASSERT_TRUE(holds(there, story(1800)));
        }
      }
    }
  }
  EXPECT_GT(tried, 5000);
  EXPECT_GT(old_ones, 1000);
  EXPECT_GT(new_ones, 500);
}

// The texts that a writer saves one after the other, until it is killed: most are longer than the
// one before, some go on otherwise, some are of another seed.
Story version(int number) {
  const uint32_t seed = 1 + static_cast<uint32_t>(number / 12);
  const int64_t length = 300 + number % 12 * 170;
  return number % 5 == 4 ? turned(story(length, seed), length / 2, 400, 77) : story(length, seed);
}

TEST(ContextFileFaults, KilledWhileWritingItIsTheOldOrTheNew) {
  const char* asked = std::getenv("DROVER_KILLS");
  const int kills = asked != nullptr ? std::max(1, std::atoi(asked)) : 50;
  const TempFolder folder(TempFolder::fast_parent());
  const fs::path path = folder / "a.ctx";
  std::mt19937 random(5);
  int done = 0, old_ones = 0, new_ones = 0, orphans = 0;
  for (int kill = 0; kill < kills; ++kill) {
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int next = done + 1;; ++next) {
        save(path, kLayout, version(next));
        if (::write(pipe[1], &next, sizeof(next)) != sizeof(next)) ::_exit(1);
      }
    }
    ::close(pipe[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself";
    for (int said; ::read(pipe[0], &said, sizeof(said)) == sizeof(said);) done = said;
    ::close(pipe[0]);
    orphans += names_in(folder.path()).size() > 1;

    // What it said was saved is there, or the next, which it did not come to say.
    const auto start = std::chrono::steady_clock::now();
    if (holds(path, version(done + 1))) {
      ++done;
      ++new_ones;
    } else {
      ++old_ones;
      ASSERT_TRUE(done == 0 ? !fs::exists(path) : holds(path, version(done))) << done;
    }
    ASSERT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  }
  // The next writer removes what the killed ones left.
  save(path, kLayout, version(done + 1));
  EXPECT_EQ(names_in(folder.path()).size(), 1u);
  std::printf("%d kills: %d old, %d new, %d left something beside\n", kills, old_ones, new_ones,
              orphans);
  EXPECT_GT(orphans, kills / 10);  // they were killed in the middle of writing
}

TEST(ContextFileFaults, ReadersBesideAWriterSeeWholeTexts) {
  const TempFolder folder(TempFolder::fast_parent());
  const fs::path path = folder / "a.ctx";
  save(path, kLayout, version(0));
  constexpr int kVersions = 150;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (int i = 1; i <= kVersions; ++i) save(path, kLayout, version(i));
    ::_exit(0);
  }
  std::vector<std::pair<int, std::shared_ptr<const ContextFile>>> held;
  int last = 0, reads = 0, status = 0;
  bool ended = false;
  while (!ended) {
    ended = ::waitpid(child, &status, WNOHANG) == child;
    const auto file = load(path, kLayout);
    EXPECT_FALSE(file->damaged_header());
    int which = last;
    while (which <= kVersions && !difference(*file, kLayout, version(which)).empty()) ++which;
    ASSERT_LE(which, kVersions) << "neither the text seen last (" << last << ") nor a later one";
    if (which > last) held.emplace_back(which, file);
    last = which;
    ++reads;
  }
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(last, kVersions);
  EXPECT_GT(held.size(), 3u) << reads << " reads";
  for (const auto& [which, file] : held) {
    EXPECT_EQ(difference(*file, kLayout, version(which)), "");
  }
}

TEST(ContextFileFaults, ManyWritersTakeTurns) {
  const TempFolder folder(TempFolder::fast_parent());
  const fs::path path = folder / "a.ctx";
  std::vector<pid_t> children;
  for (int c = 0; c < 4; ++c) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        ThreadPool threads(1);
        for (int i = 0; i < 30; ++i) {
          const Story text = version(c * 12 + i % 12);
          const Memory memory(kLayout, text);
          save_context(path, identity_of(kLayout), text, memory.lists(), threads,
                       std::chrono::seconds(60));
        }
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        ::_exit(1);
      }
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  const auto file = load(path, kLayout);
  bool known = false;
  for (int c = 0; c < 4; ++c) {
    for (int i = 0; i < 12; ++i) {
      known |= difference(*file, kLayout, version(c * 12 + i)).empty();
    }
  }
  EXPECT_TRUE(known);
  EXPECT_EQ(names_in(folder.path()).size(), 1u);
}

TEST(ContextFileFaults, AFileThatGrowsTooLargeIsNotHalfWritten) {
  in_a_process([] {
    const TempFolder folder(TempFolder::fast_parent());
    const fs::path path = folder / "a.ctx";
    save(path, kLayout, story(900));
    std::signal(SIGXFSZ, SIG_IGN);
    const auto size = fs::file_size(path);
    const rlimit limit{size + 30'000, size + 30'000};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    expect_error(ErrorKind::kCannotWrite, "too large", [&] { save(path, kLayout, story(3000)); });
    expect_error(ErrorKind::kCannotWrite, "too large",
                 [&] { save(path, kLayout, story(3000, 7)); });
    EXPECT_TRUE(holds(path, story(900)));
    EXPECT_EQ(fs::file_size(path), size);
    EXPECT_EQ(names_in(folder.path()).size(), 1u);
  });
}

// A small file system of our own, if we may have one.
bool mount_small(const fs::path& folder) {
  return ::unshare(CLONE_NEWNS) == 0 &&
         ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=200k") == 0;
}

TEST(ContextFileFaults, AFullDiskAndAReadOnlyOneAreSaid) {
  const TempFolder probe;
  bool allowed = false;
  {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(mount_small(probe.path()) ? 0 : 1);
    int status = 0;
    ::waitpid(child, &status, 0);
    allowed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (!allowed) GTEST_SKIP() << "needs the right to mount (root)";
  in_a_process([&] {
    ASSERT_TRUE(mount_small(probe.path()));
    const fs::path path = probe / "a.ctx";
    save(path, kLayout, story(900));
    const auto size = fs::file_size(path);
    expect_error(ErrorKind::kCannotWrite, "free some space",
                 [&] { save(path, kLayout, story(5000)); });
    expect_error(ErrorKind::kCannotWrite, "free some space",
                 [&] { save(path, kLayout, story(5000, 7)); });
    EXPECT_TRUE(holds(path, story(900)));
    EXPECT_EQ(fs::file_size(path), size);
    EXPECT_EQ(names_in(probe.path()).size(), 1u);
    save(path, kLayout, story(1000));  // this much there is

    ASSERT_EQ(::mount(nullptr, probe.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0);
    expect_error(ErrorKind::kCannotWrite, "Read-only", [&] { save(path, kLayout, story(1100)); });
    EXPECT_TRUE(holds(path, story(1000)));
  });
}

TEST(ContextFileFaults, AFolderThatIsNotOursIsSaid) {
  in_a_process([] {
    const TempFolder folder(TempFolder::fast_parent());
    const fs::path path = folder / "a.ctx";
    save(path, kLayout, story(300));
    const auto all_read = static_cast<fs::perms>(0555);
    fs::permissions(path, all_read);
    fs::permissions(folder.path(), all_read);
    const bool root = ::geteuid() == 0;  // may write everywhere
    ASSERT_TRUE(!root || ::seteuid(65534) == 0);
    expect_error(ErrorKind::kPermission, "a.ctx", [&] { save(path, kLayout, story(400)); });
    EXPECT_TRUE(holds(path, story(300)));
    ASSERT_TRUE(!root || ::seteuid(0) == 0);
    fs::permissions(folder.path(), fs::perms::owner_all);
  });
}

}  // namespace
}  // namespace drover
