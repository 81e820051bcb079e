// Implements the spill file: checks of the directory, creation without a name, allocation, and the O_DIRECT probe.
#include "tiers/spill_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr uint64_t kSmallestAlignment = 4096;
constexpr uint64_t kCapacityMax = uint64_t{1} << 60;  // far below where off_t would wrap
constexpr uint64_t kAllocateStep = kGiB;              // EINTR repeats one step, not the whole file

// From linux/magic.h, which is not everywhere.
constexpr uint64_t kTmpfsMagic = 0x01021994;
constexpr uint64_t kRamfsMagic = 0x858458f6;
constexpr uint64_t kHugetlbfsMagic = 0x958458f6;

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

Status refuse(const std::string& directory, const std::string& why, int system_error = 0) {
  return Status::error(StatusCode::kInvalidArgument, "nvme directory '" + directory + "' " + why, system_error);
}

// O_NOFOLLOW follows "link/": the slash asks for what the link points to.
std::string without_trailing_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string resolved(const std::string& path) {
  std::unique_ptr<char, decltype(&free)> real(realpath(path.c_str(), nullptr), &free);
  return real ? std::string(real.get()) : std::string("what it points to");
}

// All checks are made on one open descriptor, so that nobody can exchange the directory between check and use.
Status check_directory(int directory_descriptor, const std::string& directory) {
  struct stat info;
  struct statfs file_system;
  if (fstat(directory_descriptor, &info) != 0 || fstatfs(directory_descriptor, &file_system) != 0) {
    return refuse(directory, "cannot be inspected: " + describe_system_error(errno), errno);
  }
  if (S_ISLNK(info.st_mode)) {
    return refuse(directory, "is a symbolic link, which someone else could redirect; give " + resolved(directory));
  }
  if (!S_ISDIR(info.st_mode)) return refuse(directory, "is not a directory; give a directory on a local disk", ENOTDIR);
  const auto magic = static_cast<uint64_t>(file_system.f_type) & 0xffffffffu;
  if (magic == kTmpfsMagic || magic == kRamfsMagic || magic == kHugetlbfsMagic) {
    return refuse(directory, std::string("is on ") + (magic == kTmpfsMagic ? "tmpfs" : "a RAM file system") +
                                 ", which is RAM: what is spilled there would leave no memory free; give a directory "
                                 "on a disk, for example /var/tmp");
  }
  // Root is let through: in a container it meets directories of the host's users, and the file has no name for them.
  const bool shared = (info.st_mode & S_ISVTX) != 0;
  if (!shared && info.st_uid != geteuid() && geteuid() != 0) {
    return refuse(directory, "belongs to user " + std::to_string(info.st_uid) +
                                 ", who may rename or remove files in it, and you are user " +
                                 std::to_string(geteuid()) +
                                 "; give a directory of your own, or one with the sticky bit (chmod +t)");
  }
  return Status::success();
}

Status cannot_create(const std::string& directory, int system_error) {
  const std::string reason = describe_system_error(system_error);
  if (system_error == ENOSPC || system_error == EDQUOT) {
    return Status::error(StatusCode::kStorageFull,
                         "no room for a file in nvme directory '" + directory + "': " + reason, system_error);
  }
  if (system_error == EACCES || system_error == EPERM || system_error == EROFS) {
    return refuse(directory, "is not writable: " + reason + "; give a directory you may write to", system_error);
  }
  return refuse(directory, "cannot hold a spill file: " + reason, system_error);
}

// Returns a descriptor or -errno.
int create_nameless(int directory_descriptor) {
  // O_EXCL: nobody can give the file a name later.
  int descriptor = openat(directory_descriptor, ".", O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  return descriptor >= 0 ? descriptor : -errno;
}

int create_and_unlink(int directory_descriptor) {
  for (int attempt = 0; attempt < 16; ++attempt) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return -EIO;
    char name[40];
    snprintf(name, sizeof name, ".tierpage-%016llx", static_cast<unsigned long long>(random));
    int descriptor = openat(directory_descriptor, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (descriptor < 0 && errno == EEXIST) continue;
    if (descriptor < 0) return -errno;
    if (unlinkat(directory_descriptor, name, 0) == 0) return descriptor;
    int error = errno;
    close(descriptor);
    return -error;
  }
  return -EEXIST;
}

// What file systems without O_TMPFILE answer (old kernels: EISDIR, since they see a directory opened for writing).
bool lacks_nameless_files(int error) {
  return error == EOPNOTSUPP || error == EISDIR || error == EINVAL || error == ENOSYS || error == ENOENT;
}

uint64_t direct_alignment(int descriptor) {
  uint64_t alignment = kSmallestAlignment;
#ifdef STATX_DIOALIGN
  struct statx info;
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 && (info.stx_mask & STATX_DIOALIGN) != 0) {
    alignment = std::max({alignment, uint64_t{info.stx_dio_mem_align}, uint64_t{info.stx_dio_offset_align}});
  }
#endif
  return alignment;
}

// 0 if one aligned write and read work, else errno. Some file systems accept the flag and refuse the transfer.
int probe_transfer(const IoTable& table, int descriptor, uint64_t alignment) {
  std::unique_ptr<void, decltype(&free)> written(aligned_alloc(alignment, alignment), &free);
  std::unique_ptr<void, decltype(&free)> read(aligned_alloc(alignment, alignment), &free);
  if (!written || !read) return ENOMEM;
  memset(written.get(), 0x5a, alignment);
  memset(read.get(), 0, alignment);
  int64_t count;
  do {
    count = table.pwrite(descriptor, written.get(), alignment, 0);
  } while (count < 0 && errno == EINTR);
  if (count != static_cast<int64_t>(alignment)) return count < 0 ? errno : EINVAL;
  do {
    count = table.pread(descriptor, read.get(), alignment, 0);
  } while (count < 0 && errno == EINTR);
  if (count != static_cast<int64_t>(alignment)) return count < 0 ? errno : EINVAL;
  return memcmp(written.get(), read.get(), alignment) == 0 ? 0 : EIO;
}

}  // namespace

std::string describe_failure(const IoTable& table, int system_error) {
  return table.describe != nullptr ? table.describe(system_error) : describe_system_error(system_error);
}

SpillFile::SpillFile(SpillFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), closing_(other.closing_), owner_process_(other.owner_process_),
      capacity_bytes_(other.capacity_bytes_), alignment_bytes_(other.alignment_bytes_), direct_(other.direct_),
      mode_(std::move(other.mode_)), directory_(std::move(other.directory_)) {}

SpillFile::~SpillFile() {
  if (descriptor_ < 0) return;
  if (closing_ != nullptr && getpid() == owner_process_) closing_(descriptor_);
  // A forked child shares the file: it must not take the parent's data away, and must not keep its space either.
  if (getpid() == owner_process_ && ftruncate(descriptor_, 0) != 0) {
    // Nothing to do: closing gives the space back too, once no child holds the descriptor.
  }
  close(descriptor_);
}

Status SpillFile::open(const SpillFileOptions& options, const IoTable& table) {
  TP_ASSERT(descriptor_ < 0);
  if (options.capacity_bytes == 0 || options.capacity_bytes > kCapacityMax) {
    return Status::error(StatusCode::kInvalidArgument, "nvme capacity of " + std::to_string(options.capacity_bytes) +
                                                           " bytes: give 1 to " + std::to_string(kCapacityMax));
  }
  if (options.directory.empty()) return refuse("", "is empty; give a directory on a local disk");
  if (options.directory.find('\0') != std::string::npos) {
    return refuse(options.directory.c_str(), "contains a zero byte");
  }
  const std::string directory = without_trailing_slashes(options.directory);
  Descriptor opened(::open(directory.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (opened.get() < 0) {
    const int error = errno;
    const std::string why =
        error == ENOENT ? "does not exist; create it" : "cannot be opened: " + describe_system_error(error);
    return refuse(directory, why, error);
  }
  Status status = check_directory(opened.get(), directory);
  if (!status.ok()) return status;
  int created = options.nameless ? create_nameless(opened.get()) : -EOPNOTSUPP;
  if (created < 0 && lacks_nameless_files(-created)) created = create_and_unlink(opened.get());
  if (created < 0) return cannot_create(directory, -created);
  descriptor_ = created;
  directory_ = options.directory;
  owner_process_ = getpid();
  closing_ = table.closing;
  alignment_bytes_ = direct_alignment(descriptor_);
  capacity_bytes_ = round_up(options.capacity_bytes, alignment_bytes_);
  status = take_space(directory);
  return status.ok() ? choose_mode(options.direct, table) : status;
}

Status SpillFile::take_space(const std::string& directory) {
  const std::string what =
      "cannot take " + std::to_string(capacity_bytes_) + " bytes in nvme directory '" + directory + "'";
  // Checked first: the system would also send SIGXFSZ, which ends the process.
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && capacity_bytes_ > limit.rlim_cur) {
    return Status::error(StatusCode::kStorageFull,
                         what + ": files may have " + std::to_string(limit.rlim_cur) +
                             " bytes at most in this process (raise it with ulimit -f)",
                         EFBIG);
  }
  auto full = [&](uint64_t free_bytes, int error) {
    return Status::error(StatusCode::kStorageFull,
                         what + ": " + std::to_string(free_bytes) + " bytes are free: " + describe_system_error(error) +
                             "; lower the capacity or give another directory",
                         error);
  };
  // Known to fail: do not fill the disk first, others write to it too. Some file systems report no sizes at all.
  struct statvfs space;
  const bool knows_space = fstatvfs(descriptor_, &space) == 0 && space.f_blocks > 0;
  const uint64_t free_bytes = knows_space ? uint64_t{space.f_bavail} * space.f_frsize : 0;
  if (knows_space && capacity_bytes_ > free_bytes) return full(free_bytes, ENOSPC);
  // Before O_DIRECT is set: where the file system cannot allocate, the C library writes single bytes.
  for (uint64_t offset = 0; offset < capacity_bytes_;) {
    const uint64_t step = std::min(kAllocateStep, capacity_bytes_ - offset);
    const int error = posix_fallocate(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(step));
    if (error == EINTR) continue;
    if (error != 0 && storage_code_of(error) == StatusCode::kStorageFull) return full(free_bytes, error);
    if (error != 0) return Status::error(StatusCode::kStorageError, what + ": " + describe_system_error(error), error);
    offset += step;
  }
  return Status::success();
}

Status SpillFile::choose_mode(bool want_direct, const IoTable& table) {
  if (!want_direct) {
    mode_ = kBufferedAsAsked;
    return Status::success();
  }
  const int flags = fcntl(descriptor_, F_GETFL);
  int error = fcntl(descriptor_, F_SETFL, flags | O_DIRECT) == 0 ? 0 : errno;
  if (error == 0) error = probe_transfer(table, descriptor_, alignment_bytes_);
  if (error == 0) {
    direct_ = true;
    mode_ = "direct";
    return Status::success();
  }
  if (error != EINVAL && error != EOPNOTSUPP) {
    return Status::error(storage_code_of(error),
                         "the first transfer to the spill file in '" + directory_ +
                             "' failed: " + describe_failure(table, error),
                         error);
  }
  if (fcntl(descriptor_, F_SETFL, flags) != 0) {
    return Status::error(StatusCode::kStorageError,
                         "cannot switch the spill file to buffered: " + describe_system_error(errno), errno);
  }
  mode_ = "buffered, because the file system refuses O_DIRECT: " + describe_system_error(error);
  return Status::success();
}

}  // namespace tierpage
