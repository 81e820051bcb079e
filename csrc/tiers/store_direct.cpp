// DirectStore: the NVMe tier as a spill file, read and written by worker threads.
//
// In buffered mode every write is forced out and every range leaves the page cache, for two reasons: the cache would
// take the RAM that the user gave to others, and an error of a later write-back would reach nobody.
//
// With `verify` each worker computes the checksums of what it writes before the write, and compares after each read. A
// unit that does not match is read once more (a transfer may have gone wrong, not the disk); then it is kCorruptPage.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "tiers/block_store.h"
#include "tiers/crc32c.h"
#include "tiers/spill_file.h"
#include "tiers/store_workers.h"
#include "tiers/unit_checksums.h"

namespace tierpage {
namespace {

constexpr int kWorkerCountMin = 4;  // what the contract of BlockStore promises
constexpr int kWorkerCountMax = 256;
constexpr int kStuckCallsMax = 8;
constexpr uint64_t kPieceUnitsMax = 1024;  // checksums of one piece are kept on the worker's stack

int64_t system_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  return ::pread(descriptor, buffer, bytes, static_cast<off_t>(offset));
}

int64_t system_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  return ::pwrite(descriptor, buffer, bytes, static_cast<off_t>(offset));
}

class DirectStore final : public BlockStore {
 public:
  DirectStore(const DirectStoreOptions& options, const IoTable& table, SpillFile file, UnitChecksums checksums)
      : table_(table),
        file_(std::move(file)),
        checksums_(std::move(checksums)),
        directory_(options.directory),
        description_("spill file in " + options.directory + ", " + file_.mode() + ", " +
                     std::to_string(options.worker_count) + " threads, " +
                     (!checksums_.enabled()  ? "reads not checked"
                      : crc32c_in_hardware() ? "reads checked"
                                             : "reads checked (slowly: the processor has no CRC32C instruction)")),
        workers_({file_.capacity_bytes(), file_.alignment_bytes(), options.request_bytes_max},
                 [this](StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) {
                   if (!checksums_.enabled()) return move_piece(operation, offset, bytes, buffer);
                   return operation == StoreOperation::kWrite ? write_recorded(offset, bytes, buffer)
                                                              : read_checked(offset, bytes, buffer);
                 }) {
    // Read-ahead past a request's end would stay in the page cache: nobody drops what nobody asked for.
    if (!file_.direct()) (void)posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_RANDOM);
  }

  Status start(int worker_count) { return workers_.start(worker_count); }
  std::string description() const override { return description_; }
  uint64_t capacity_bytes() const override { return file_.capacity_bytes(); }
  uint64_t alignment_bytes() const override { return file_.alignment_bytes(); }
  Status submit(const StoreRequest& request) override { return workers_.submit(request); }
  size_t poll(std::vector<StoreCompletion>& completions) override { return workers_.poll(completions); }
  void set_wake(void (*wake)(void*), void* context) override { workers_.set_wake(wake, context); }

 private:
  Status write_recorded(uint64_t offset, uint64_t bytes, std::byte* buffer);
  Status read_checked(uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status corruption(const UnitChecksums::Mismatch& first, const UnitChecksums::Mismatch& second) const;
  Status move_piece(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status leave_page_cache(StoreOperation operation, uint64_t offset, uint64_t bytes) const;
  Status failure(StoreOperation operation, uint64_t offset, uint64_t bytes, uint64_t done, int system_error,
                 const std::string& reason) const;

  const IoTable table_;
  const SpillFile file_;
  UnitChecksums checksums_;  // by worker threads, each for the units of its piece
  const std::string directory_;
  const std::string description_;
  StoreWorkers workers_;  // last: its threads use the rest
};

Status DirectStore::failure(StoreOperation operation, uint64_t offset, uint64_t bytes, uint64_t done, int system_error,
                            const std::string& reason) const {
  const char* verb = operation == StoreOperation::kRead ? "read" : "write";
  return Status::error(storage_code_of(system_error),
                       std::string(verb) + " of " + std::to_string(bytes) + " bytes at offset " +
                           std::to_string(offset) + " of the spill file in '" + directory_ + "' failed after " +
                           std::to_string(done) + " bytes: " + reason,
                       system_error);
}

Status DirectStore::write_recorded(uint64_t offset, uint64_t bytes, std::byte* buffer) {
  std::array<uint32_t, kPieceUnitsMax> room;
  const auto made = checksums_.compute(offset, bytes, buffer, room);
  checksums_.forget(offset, bytes);  // of a write that fails half way nothing is known
  Status status = move_piece(StoreOperation::kWrite, offset, bytes, buffer);
  if (status.ok()) checksums_.remember(offset, made);
  return status;
}

Status DirectStore::read_checked(uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  Status status = move_piece(StoreOperation::kRead, offset, bytes, buffer);
  if (!status.ok()) return status;
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset; at < end;) {
    const auto wrong = checksums_.first_wrong(at, end - at, buffer + (at - offset));
    if (!wrong) break;
    std::byte* const unit = buffer + (wrong->offset - offset);
    status = move_piece(StoreOperation::kRead, wrong->offset, wrong->bytes, unit);
    if (!status.ok()) return status;
    const auto again = checksums_.first_wrong(wrong->offset, wrong->bytes, unit);
    if (again) return corruption(*wrong, *again);
    at = wrong->offset + wrong->bytes;
  }
  return Status::success();
}

Status DirectStore::corruption(const UnitChecksums::Mismatch& first, const UnitChecksums::Mismatch& second) const {
  char sums[96];
  snprintf(sums, sizeof sums, "CRC32C 0x%08x instead of 0x%08x, and 0x%08x when read again", first.found,
           first.expected, second.found);
  return Status::error(StatusCode::kCorruptPage,
                       "the " + std::to_string(second.bytes) + " bytes at offset " + std::to_string(second.offset) +
                           " of the spill file in '" + directory_ + "' are not what was written there: " + sums);
}

Status DirectStore::move_piece(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  const bool reading = operation == StoreOperation::kRead;
  uint64_t done = 0;
  int stuck_calls = 0;
  while (done < bytes) {
    const int64_t count = reading ? table_.pread(file_.descriptor(), buffer + done, bytes - done, offset + done)
                                  : table_.pwrite(file_.descriptor(), buffer + done, bytes - done, offset + done);
    if (count < 0) {
      const int error = errno;
      if (error == EINTR) continue;
      return failure(operation, offset, bytes, done, error, describe_failure(table_, error));
    }
    if (count == 0 && reading) return failure(operation, offset, bytes, done, 0, "file truncated");
    // Direct calls must go on at an aligned offset, so an odd rest is moved once more.
    const auto moved = static_cast<uint64_t>(count);
    const uint64_t usable = file_.direct() ? moved / file_.alignment_bytes() * file_.alignment_bytes() : moved;
    stuck_calls = usable == 0 ? stuck_calls + 1 : 0;
    if (stuck_calls > kStuckCallsMax) {
      return failure(operation, offset, bytes, done, EIO, "the system makes no progress");
    }
    done += usable;
  }
  return file_.direct() ? Status::success() : leave_page_cache(operation, offset, bytes);
}

Status DirectStore::leave_page_cache(StoreOperation operation, uint64_t offset, uint64_t bytes) const {
  const auto begin = static_cast<off_t>(offset);
  const auto length = static_cast<off_t>(bytes);
  if (operation == StoreOperation::kWrite) {
    constexpr unsigned kWriteAndWait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    int result;
    do {
      result = sync_file_range(file_.descriptor(), begin, length, kWriteAndWait);
    } while (result != 0 && errno == EINTR);
    const int error = result != 0 ? errno : 0;
    if (error != 0 && error != ENOSYS && error != EINVAL) {
      return failure(operation, offset, bytes, bytes, error, "write-back: " + describe_system_error(error));
    }
  }
  // Only advice: a refusal costs RAM, not data.
  (void)posix_fadvise(file_.descriptor(), begin, length, POSIX_FADV_DONTNEED);
  return Status::success();
}

Status check_options(const DirectStoreOptions& options) {
  if (options.worker_count < kWorkerCountMin || options.worker_count > kWorkerCountMax) {
    return Status::error(StatusCode::kInvalidArgument,
                         "worker_count " + std::to_string(options.worker_count) + ": give " +
                             std::to_string(kWorkerCountMin) + " to " + std::to_string(kWorkerCountMax));
  }
  if (options.request_bytes_max == 0 || options.request_bytes_max > kGiB) {
    return Status::error(StatusCode::kInvalidArgument, "request_bytes_max " +
                                                           std::to_string(options.request_bytes_max) +
                                                           ": give 4096 to 1073741824");
  }
  const uint64_t unit = options.verify_unit_bytes;
  if (options.verify && (!std::has_single_bit(unit) || unit < 4 * kKiB || unit > kGiB)) {
    return Status::error(StatusCode::kInvalidArgument, "verify_unit_bytes " + std::to_string(unit) +
                                                           ": give a power of two from 4096 to 1073741824");
  }
  return Status::success();
}

}  // namespace

const IoTable& system_io_table() {
  static const IoTable table{&system_pread, &system_pwrite};
  return table;
}

Status make_direct_store(const DirectStoreOptions& options, std::unique_ptr<BlockStore>* store) {
  return make_direct_store(options, system_io_table(), store);
}

Status make_direct_store(const DirectStoreOptions& options, const IoTable& table, std::unique_ptr<BlockStore>* store) {
  Status status = check_options(options);
  if (!status.ok()) return status;
  SpillFile file;
  status = file.open({options.directory, options.capacity_bytes, options.direct, true}, table);
  if (!status.ok()) return status;
  DirectStoreOptions effective = options;
  effective.request_bytes_max = round_up(options.request_bytes_max, file.alignment_bytes());
  UnitChecksums checksums;
  if (options.verify) {
    const uint64_t unit = std::max(options.verify_unit_bytes, file.alignment_bytes());  // it may be read by itself
    if (status = checksums.open(file.capacity_bytes(), unit); !status.ok()) return status;
    // Cuts lie between units, or the units at the cuts would go unchecked.
    effective.request_bytes_max = std::min(round_up(options.request_bytes_max, unit), kPieceUnitsMax * unit);
  }
  auto made = std::make_unique<DirectStore>(effective, table, std::move(file), std::move(checksums));
  status = made->start(options.worker_count);
  if (status.ok()) *store = std::move(made);
  return status;
}

}  // namespace tierpage
