// Implements the files that are only read: opening, the check that they are what they were, reading.
#include "tiers/source_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "tiers/spill_file.h"
#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr uint64_t kPlaceBits = 44;  // 16 TiB for each file
constexpr uint64_t kPlaceBytes = uint64_t{1} << kPlaceBits;
constexpr uint64_t kFilesMax = 1 << 16;
constexpr uint64_t kCopyBytes = kMiB;  // of a worker's buffer for requests that direct I/O cannot take as they are
// Times of modification advance in steps of a timer tick: a file younger than this could change without showing it.
constexpr int64_t kTickNs = 20'000'000;

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * kSecondNs + time.tv_nsec; }

std::string quoted(const std::string& name) { return "checkpoint file '" + name + "'"; }

// Waits until a change from now on would show in the time of modification.
void outwait_tick(const struct stat& info) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t age = nanoseconds(now) - nanoseconds(info.st_mtim);
  if (age >= 0 && age < kTickNs) std::this_thread::sleep_for(std::chrono::nanoseconds(kTickNs - age));
}

// A descriptor of the same file with a position and flags of its own, or -errno.
int open_again(int descriptor, int flags) {
  const int opened = open(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), O_RDONLY | O_CLOEXEC | flags);
  return opened >= 0 ? opened : -errno;
}

// 0 if the first bytes can be read without the page cache, else errno.
int probe_direct(const IoTable& table, int descriptor) {
  constexpr uint64_t kBytes = SourceFiles::kAlignment;
  std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(kBytes, kBytes), &free);
  if (!memory) return ENOMEM;
  int64_t count;
  do {
    count = table.pread(descriptor, memory.get(), kBytes, 0);
  } while (count < 0 && errno == EINTR);
  return count < 0 ? errno : 0;
}

std::byte* copy_buffer() {
  thread_local std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(SourceFiles::kAlignment, kCopyBytes), &free);
  return static_cast<std::byte*>(memory.get());
}

}  // namespace

struct SourceFiles::File {
  int descriptor = -1;
  bool direct = false;
  std::string name;
  std::string mode;
  struct stat info{};

  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
  uint64_t bytes() const { return static_cast<uint64_t>(info.st_size); }
  Status unchanged() const;
  Status changed(const std::string& what) const;
  Status failure(uint64_t offset, uint64_t bytes, const std::string& reason, int system_error) const {
    return Status::error(
        StatusCode::kStorageError,
        "read of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " of " + quoted(name) +
            " failed: " + reason +
            ".\nLikely cause: the disk, or the connection to it.\nRemedy: see the kernel log for the disk; "
            "copy the file to another one and load it from there",
        system_error);
  }
};

// Of a file that is not what it was: how one can tell.
Status SourceFiles::File::changed(const std::string& what) const {
  return Status::error(StatusCode::kStorageError,
                       quoted(name) + " changed while tensors had their content in it: " + what +
                           ". What had not been read before is lost.\nLikely cause: a program wrote into the file in "
                           "place.\nRemedy: load a whole checkpoint again; replace a checkpoint by renaming a new file "
                           "over it, as tierpage.save does.");
}

Status SourceFiles::File::unchanged() const {
  struct stat now;
  if (fstat(descriptor, &now) != 0) return failure(0, 0, describe_system_error(errno), errno);
  std::string what;
  if (now.st_size != info.st_size) {
    what = "it had " + std::to_string(info.st_size) + " bytes and has " + std::to_string(now.st_size);
  } else if (nanoseconds(now.st_mtim) != nanoseconds(info.st_mtim)) {
    what = "it was written to " + std::to_string((nanoseconds(now.st_mtim) - nanoseconds(info.st_mtim)) / 1'000'000) +
           " ms after the version that was loaded";
  } else if (now.st_dev != info.st_dev || now.st_ino != info.st_ino) {
    what =
        "it is another file (inode " + std::to_string(now.st_ino) + " instead of " + std::to_string(info.st_ino) + ")";
  } else {
    return Status::success();
  }
  return changed(what);
}

SourceFiles::SourceFiles(const SourceFilesOptions& options, const IoTable& table)
    : options_(options), table_(table), workers_({kFilesMax << kPlaceBits, 1, kPieceBytesMax},
                                                 [this](StoreOperation, uint64_t offset, uint64_t bytes,
                                                        std::byte* buffer) { return read(offset, bytes, buffer); }) {}

SourceFiles::~SourceFiles() = default;

Status SourceFiles::start() { return workers_.start(options_.worker_count); }

Status SourceFiles::add(int descriptor, const std::string& name, const Version* known, uint64_t* place) {
  auto file = std::make_shared<File>();
  file->name = name;
  struct stat given;
  if (fstat(descriptor, &given) != 0) {
    return Status::error(StatusCode::kInvalidArgument, quoted(name) + ": " + describe_system_error(errno), errno);
  }
  if (!S_ISREG(given.st_mode) || static_cast<uint64_t>(given.st_size) > kPlaceBytes) {
    return Status::error(StatusCode::kInvalidArgument,
                         quoted(name) + (S_ISREG(given.st_mode) ? " is larger than 16 TiB" : " is not a regular file"));
  }
  outwait_tick(given);
  if (options_.direct) file->descriptor = open_again(descriptor, O_DIRECT);
  int refused = options_.direct ? std::min(file->descriptor, 0) * -1 : 0;
  if (options_.direct && refused == 0) refused = probe_direct(table_, file->descriptor);
  file->direct = options_.direct && refused == 0;
  file->mode = file->direct      ? "direct"
               : options_.direct ? "buffered, because O_DIRECT is refused: " + describe_system_error(refused)
                                 : "buffered as asked";
  if (!file->direct) {
    if (file->descriptor >= 0) close(file->descriptor);
    file->descriptor = open_again(descriptor, 0);
    if (file->descriptor < 0) file->descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (file->descriptor < 0)
      return Status::error(StatusCode::kStorageError, quoted(name) + ": " + describe_system_error(errno), errno);
    (void)posix_fadvise(file->descriptor, 0, 0, POSIX_FADV_RANDOM);
  }
  file->info = given;
  if (known != nullptr) {
    file->info.st_size = static_cast<off_t>(known->bytes);
    file->info.st_mtim = {known->modified_ns / kSecondNs, known->modified_ns % kSecondNs};
  }
  if (Status status = file->unchanged(); !status.ok()) return status;
  const LockGuard lock(mutex_);
  uint64_t number = 0;
  while (files_.contains(number)) ++number;
  if (number >= kFilesMax)
    return Status::error(StatusCode::kInvalidArgument, "65536 checkpoint files are open already");
  files_.emplace(number, std::move(file));
  *place = number << kPlaceBits;
  return Status::success();
}

void SourceFiles::remove(uint64_t place) {
  std::shared_ptr<const File> closed;  // without the lock
  const LockGuard lock(mutex_);
  const auto found = files_.find(place >> kPlaceBits);
  if (found == files_.end()) return;
  closed = std::move(found->second);
  files_.erase(found);
}

size_t SourceFiles::count() const {
  const LockGuard lock(mutex_);
  return files_.size();
}

std::string SourceFiles::description(uint64_t place) const {
  const auto file = file_at(place);
  return file ? quoted(file->name) + ", " + file->mode : "no file";
}

std::shared_ptr<const SourceFiles::File> SourceFiles::file_at(uint64_t offset) const {
  const LockGuard lock(mutex_);
  const auto found = files_.find(offset >> kPlaceBits);
  return found == files_.end() ? nullptr : found->second;
}

Status SourceFiles::check(uint64_t offset, uint64_t bytes, uint64_t end_alignment) const {
  const auto file = file_at(offset);
  const uint64_t in_file = offset & (kPlaceBytes - 1);
  if (!file) {
    return Status::error(StatusCode::kInvalidArgument, "read of " + std::to_string(bytes) + " bytes at offset " +
                                                           std::to_string(in_file) +
                                                           " of a checkpoint file that is not open");
  }
  const uint64_t end = round_up(file->bytes(), end_alignment);
  if (in_file <= end && bytes <= end - in_file) return Status::success();
  return Status::error(StatusCode::kStorageError, "read of " + std::to_string(bytes) + " bytes at offset " +
                                                      std::to_string(in_file) + " ends beyond " + quoted(file->name) +
                                                      " of " + std::to_string(file->bytes()) + " bytes");
}

Status SourceFiles::submit(const StoreRequest& request) {
  if (request.operation != StoreOperation::kRead) {
    return Status::error(StatusCode::kInvalidArgument, "checkpoint files are never written");
  }
  Status status = check(request.offset, request.bytes, kAlignment);
  return status.ok() ? workers_.submit(request) : status;
}

Status SourceFiles::read_now(uint64_t offset, uint64_t bytes, std::byte* buffer) {
  Status status = check(offset, bytes, 1);
  return status.ok() ? read(offset, bytes, buffer) : status;
}

Status SourceFiles::read(uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  const auto file = file_at(offset);
  if (!file) return check(offset, bytes, kAlignment);
  const uint64_t in_file = offset & (kPlaceBytes - 1);
  Status status = file->unchanged();
  if (!status.ok()) return status;
  const bool fits = ((in_file | bytes | reinterpret_cast<uintptr_t>(buffer)) & (kAlignment - 1)) == 0;
  status = !file->direct || fits ? read_blocks(*file, in_file, bytes, buffer)
                                 : read_through_copy(*file, in_file, bytes, buffer);
  // A change is the better explanation of whatever went wrong meanwhile.
  const Status after = file->unchanged();
  return after.ok() ? status : after;
}

// Reads the blocks that cover the range and copies what was asked for.
Status SourceFiles::read_through_copy(const File& file, uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  std::byte* const blocks = copy_buffer();
  if (blocks == nullptr) return file.failure(offset, bytes, describe_system_error(ENOMEM), ENOMEM);
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset; at < end;) {
    const uint64_t first = at / kAlignment * kAlignment;
    const uint64_t covered = std::min(kCopyBytes, round_up(end, kAlignment) - first);
    Status status = read_blocks(file, first, covered, blocks);
    if (!status.ok()) return status;
    const uint64_t usable = std::min(end, first + covered) - at;
    memcpy(buffer + (at - offset), blocks + (at - first), usable);
    at += usable;
  }
  return Status::success();
}

Status SourceFiles::read_blocks(const File& file, uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  const uint64_t there = offset < file.bytes() ? std::min(bytes, file.bytes() - offset) : 0;
  uint64_t done = 0;
  int stuck_calls = 0;
  while (done < there) {
    const uint64_t asked = file.direct ? bytes - done : there - done;  // direct: whole blocks, the last one ends early
    const int64_t count = table_.pread(file.descriptor, buffer + done, asked, offset + done);
    if (count < 0) {
      const int error = errno;
      if (error == EINTR) continue;
      return file.failure(offset, bytes, describe_system_error(error), error);
    }
    if (count == 0)
      return file.failure(offset, bytes, "the file ends after " + std::to_string(offset + done) + " bytes", 0);
    const auto moved = static_cast<uint64_t>(count);
    if (done + moved >= there) break;
    // Direct calls must go on at an aligned offset, so an odd rest is moved once more.
    const uint64_t usable = file.direct ? moved / kAlignment * kAlignment : moved;
    stuck_calls = usable == 0 ? stuck_calls + 1 : 0;
    if (stuck_calls > kStuckCallsMax) return file.failure(offset, bytes, "the system makes no progress", EIO);
    done += usable;
  }
  memset(buffer + there, 0, bytes - there);
  // What was read once is not worth the RAM of the page cache; only advice.
  if (!file.direct)
    (void)posix_fadvise(file.descriptor, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
  return Status::success();
}

}  // namespace tierpage
