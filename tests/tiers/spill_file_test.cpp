// The spill file: which directories are refused and why, that its space is taken, and that nothing of it is left.
#include "tiers/spill_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <optional>

#include "store_test_support.h"

#if defined(__SANITIZE_THREAD__)
#define TIERPAGE_SKIP_FORK() GTEST_SKIP() << "fork of a threaded process under ThreadSanitizer"
#else
#define TIERPAGE_SKIP_FORK() static_cast<void>(0)
#endif

namespace tierpage::testing {
namespace {

constexpr uint64_t kCapacity = 4 * kMiB;

class SpillFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
  }
  Status open(const std::string& directory, uint64_t capacity = kCapacity) {
    SpillFile file;
    return file.open({.directory = directory, .capacity_bytes = capacity}, system_io_table());
  }
  // A value from the user is refused: the message names it and a remedy.
  void expect_refused(const std::string& directory, const std::string& why) {
    Status status = open(directory);
    EXPECT_EQ(status.code, StatusCode::kInvalidArgument) << status.message;
    EXPECT_NE(status.message.find(directory), std::string::npos) << status.message;
    EXPECT_NE(status.message.find(why), std::string::npos) << status.message;
  }
  ScratchDirectory directory_;
};

// Runs `body` in a child without root's rights; its result is the exit status.
constexpr uid_t kNobody = 65534;

int as_nobody(const std::function<int()>& body) {
  pid_t child = fork();
  if (child == 0) {
    if (geteuid() == 0 && setresuid(kNobody, kNobody, kNobody) != 0) _exit(99);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

TEST_F(SpillFileTest, HasNoNameIsPrivateAndTakesItsSpace) {
  for (bool nameless : {true, false}) {
    for (bool direct : {true, false}) {
      SpillFile file;
      Status status = file.open({.directory = directory_.path() + "//",
                                 .capacity_bytes = kCapacity - 1,
                                 .direct = direct,
                                 .nameless = nameless},
                                system_io_table());
      ASSERT_TRUE(status.ok()) << status.message;
      EXPECT_TRUE(directory_.names().empty());
      struct stat info;
      ASSERT_EQ(fstat(file.descriptor(), &info), 0);
      EXPECT_EQ(info.st_nlink, 0u);
      EXPECT_EQ(info.st_mode & 07777, 0600u);
      EXPECT_EQ(file.capacity_bytes(), kCapacity);
      EXPECT_EQ(static_cast<uint64_t>(info.st_size), kCapacity);
      EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, kCapacity);
      EXPECT_EQ(fcntl(file.descriptor(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
      EXPECT_EQ((fcntl(file.descriptor(), F_GETFL) & O_DIRECT) != 0, file.direct());
      EXPECT_TRUE(direct || !file.direct());
    }
  }
}

TEST_F(SpillFileTest, RefusesWhatIsNoDirectoryOfOurs) {
  const std::string missing = directory_.path() + "/missing";
  expect_refused(missing, "does not exist");
  const std::string plain = directory_.path() + "/plain";
  close(::open(plain.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  expect_refused(plain, "not a directory");
  unlink(plain.c_str());
  const std::string link = directory_.path() + "/link";
  ASSERT_EQ(symlink(".", link.c_str()), 0);
  expect_refused(link, "symbolic link");
  Status status = open(link + "/");
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument) << "a trailing slash must not hide the link";
  unlink(link.c_str());
  expect_refused("/proc", "'/proc'");
}

TEST_F(SpillFileTest, RefusesRamFileSystems) {
  if (!is_tmpfs("/dev/shm")) GTEST_SKIP() << "/dev/shm is no tmpfs";
  expect_refused("/dev/shm", "tmpfs");
}

TEST_F(SpillFileTest, RefusesWhatItMayNotWriteTo) {
  TIERPAGE_SKIP_FORK();
  ASSERT_EQ(chmod(directory_.path().c_str(), 01555), 0);  // sticky: it may be another user's
  EXPECT_EQ(as_nobody([&] {
              Status status = open(directory_.path());
              return status.code == StatusCode::kInvalidArgument && status.system_error == EACCES ? 7 : 1;
            }),
            7);
  ASSERT_EQ(chmod(directory_.path().c_str(), 0700), 0);
}

TEST_F(SpillFileTest, RefusesADirectoryOfAnotherUser) {
  TIERPAGE_SKIP_FORK();
  if (geteuid() != 0) GTEST_SKIP() << "needs a second user";
  ASSERT_EQ(chmod(directory_.path().c_str(), 0770), 0);
  ASSERT_EQ(chown(directory_.path().c_str(), 0, getegid()), 0);  // the group may write: not enough
  EXPECT_EQ(as_nobody([&] {
              const Status status = open(directory_.path());
              return status.message.find("belongs to user 0") != std::string::npos ? static_cast<int>(status.code) : 0;
            }),
            static_cast<int>(StatusCode::kInvalidArgument));
  ASSERT_EQ(chown(directory_.path().c_str(), kNobody, kNobody), 0);
  auto code = [&] { return static_cast<int>(open(directory_.path()).code); };
  EXPECT_EQ(as_nobody(code), 0);
  EXPECT_EQ(code(), 0);  // root
  ASSERT_EQ(chown(directory_.path().c_str(), 0, 0), 0);
  ASSERT_EQ(chmod(directory_.path().c_str(), 0700), 0);
}

TEST_F(SpillFileTest, RefusesADirectoryThatAnyoneControls) {
  TIERPAGE_SKIP_FORK();
  if (geteuid() != 0) GTEST_SKIP() << "needs a second user";
  auto code = [&] { return static_cast<int>(open(directory_.path()).code); };
  ASSERT_EQ(chmod(directory_.path().c_str(), 0777), 0);
  EXPECT_EQ(as_nobody(code), static_cast<int>(StatusCode::kInvalidArgument));
  EXPECT_EQ(code(), 0);  // ours
  ASSERT_EQ(chmod(directory_.path().c_str(), 01777), 0);
  EXPECT_EQ(as_nobody(code), 0);  // sticky, as /tmp
  ASSERT_EQ(chmod(directory_.path().c_str(), 0700), 0);
}

TEST_F(SpillFileTest, TooMuchIsRefusedWithTheFreeSpaceAndLeavesTheDiskAlone) {
  struct statvfs before;
  struct statvfs after;
  ASSERT_EQ(statvfs(directory_.path().c_str(), &before), 0);
  Status status = open(directory_.path(), uint64_t{1} << 55);
  ASSERT_EQ(statvfs(directory_.path().c_str(), &after), 0);
  EXPECT_EQ(status.code, StatusCode::kStorageFull);
  EXPECT_EQ(status.system_error, ENOSPC);
  EXPECT_NE(status.message.find("bytes are free"), std::string::npos) << status.message;
  EXPECT_GT(after.f_bavail, before.f_bavail / 2);
  EXPECT_TRUE(directory_.names().empty());
}

TEST_F(SpillFileTest, GivesItsSpaceBackThoughAChildHoldsTheDescriptor) {
  std::optional<SpillFile> file(std::in_place);
  ASSERT_TRUE(file->open({.directory = directory_.path(), .capacity_bytes = kCapacity}, system_io_table()).ok());
  const int kept = dup(file->descriptor());
  file.reset();
  struct stat info;
  ASSERT_EQ(fstat(kept, &info), 0);
  EXPECT_EQ(info.st_blocks, 0);
  close(kept);
}

TEST_F(SpillFileTest, AForkedChildDoesNotTakeTheDataAway) {
  TIERPAGE_SKIP_FORK();
  std::optional<SpillFile> file(std::in_place);
  ASSERT_TRUE(file->open({.directory = directory_.path(), .capacity_bytes = kCapacity}, system_io_table()).ok());
  pid_t child = fork();
  if (child == 0) {
    file.reset();
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  struct stat info;
  ASSERT_EQ(fstat(file->descriptor(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), kCapacity);
}

[[noreturn]] void write_until_killed(const std::string& directory, int ready) {
  DirectStoreOptions options;
  options.directories = {directory};
  options.capacity_bytes = 16 * kMiB;
  std::unique_ptr<BlockStore> store;
  if (!make_direct_store(options, &store).ok()) _exit(1);
  AlignedBuffer data(kMiB, 1);
  std::vector<StoreCompletion> completions;
  for (uint64_t i = 0;; ++i) {
    (void)store->submit({i, StoreOperation::kWrite, i % 16 * kMiB, kMiB, data.data()});
    while (store->poll(completions) > 8) usleep(100);
    completions.clear();
    if (i == 32 && write(ready, "x", 1) != 1) _exit(1);
  }
}

TEST_F(SpillFileTest, AKilledProcessLeavesNothing) {
  TIERPAGE_SKIP_FORK();
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  pid_t child = fork();
  if (child == 0) write_until_killed(directory_.path(), pipe_ends[1]);
  close(pipe_ends[1]);
  char byte = 0;
  EXPECT_EQ(read(pipe_ends[0], &byte, 1), 1);
  EXPECT_TRUE(directory_.names().empty());
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(directory_.names().empty());
  close(pipe_ends[0]);
}

}  // namespace
}  // namespace tierpage::testing
