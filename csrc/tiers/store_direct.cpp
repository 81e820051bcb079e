// DirectStore: the NVMe tier as spill files, one for each drive, read and written by worker threads.
//
// In buffered mode every write is forced out and every range leaves the page cache, for two reasons: the cache would
// take the RAM that the user gave to others, and an error of a later write-back would reach nobody.
//
// With `verify` each worker computes the checksums of what it writes before the write, and compares after each read. A
// unit that does not match is read once more (a transfer may have gone wrong, not the disk); then it is kCorruptPage.
//
// With `verify_writes` a worker also reads back what it wrote, past the page cache, and compares it with the caller's
// buffer before the request completes: a lost or torn write is found while the page still has its other copy.
//
// With `encrypt` a worker encrypts into memory of its own (the caller's buffer is still a valid copy and must not
// change) and decrypts in place. Checksums are of the plain bytes, so they also find what was decrypted wrongly.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "tiers/block_store.h"
#include "tiers/crc32c.h"
#include "tiers/page_cipher.h"
#include "tiers/spill_files.h"
#include "tiers/store_workers.h"
#include "tiers/system_error.h"
#include "tiers/unit_checksums.h"

namespace tierpage {
namespace {

constexpr int kWorkerCountMin = 4;  // what the contract of BlockStore promises
constexpr int kWorkerCountMax = 256;
constexpr uint64_t kHugePageBytes = 2 * kMiB;
constexpr uint64_t kPieceUnitsMax = 1024;  // checksums of one piece are kept on the worker's stack

int64_t system_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  return ::pread(descriptor, buffer, bytes, static_cast<off_t>(offset));
}

int64_t system_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  return ::pwrite(descriptor, buffer, bytes, static_cast<off_t>(offset));
}

// "offset 4096 of the spill file in '/data'"
std::string name_of(const SpillFiles::Place& at) {
  return "offset " + std::to_string(at.offset) + " of the spill file in '" + at.file->directory() + "'";
}

Status failure(StoreOperation operation, const SpillFiles::Place& at, uint64_t bytes, uint64_t done, int system_error,
               const std::string& reason) {
  const char* verb = operation == StoreOperation::kRead ? "read" : "write";
  return Status::error(storage_code_of(system_error),
                       std::string(verb) + " of " + std::to_string(bytes) + " bytes at " + name_of(at) +
                           " failed after " + std::to_string(done) + " bytes: " + reason,
                       system_error);
}

Status leave_page_cache(StoreOperation operation, const SpillFiles::Place& at, uint64_t bytes) {
  const auto begin = static_cast<off_t>(at.offset);
  const auto length = static_cast<off_t>(bytes);
  if (operation == StoreOperation::kWrite) {
    constexpr unsigned kWriteAndWait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    int result;
    do {
      result = sync_file_range(at.file->descriptor(), begin, length, kWriteAndWait);
    } while (result != 0 && errno == EINTR);
    const int error = result != 0 ? errno : 0;
    if (error != 0 && error != ENOSYS && error != EINVAL) {
      return failure(operation, at, bytes, bytes, error, "write-back: " + describe_system_error(error));
    }
  }
  // Only advice: a refusal costs RAM, not data.
  (void)posix_fadvise(at.file->descriptor(), begin, length, POSIX_FADV_DONTNEED);
  return Status::success();
}

// Memory of the calling worker alone, as large as its store's largest piece; null where there is none.
std::byte* worker_memory(uint64_t piece_bytes_max, uint64_t alignment) {
  struct Free {
    void operator()(std::byte* memory) const { free(memory); }
  };
  thread_local std::unique_ptr<std::byte, Free> memory;
  if (memory != nullptr) return memory.get();
  // In huge pages, where there are some: direct I/O pins each page by itself.
  const uint64_t aligned = std::max(alignment, piece_bytes_max >= kHugePageBytes ? kHugePageBytes : alignment);
  const uint64_t bytes = round_up(piece_bytes_max, aligned);
  memory.reset(static_cast<std::byte*>(aligned_alloc(aligned, bytes)));
  if (memory != nullptr) (void)madvise(memory.get(), bytes, MADV_HUGEPAGE);
  return memory.get();
}

class DirectStore final : public BlockStore {
 public:
  DirectStore(const DirectStoreOptions& options, const IoTable& table, SpillFiles files, UnitChecksums checksums,
              std::unique_ptr<PageCipher> cipher)
      : table_(table), files_(std::move(files)), checksums_(std::move(checksums)), cipher_(std::move(cipher)),
        description_(files_.description() + ", " + std::to_string(thread_count(options)) + " threads, " +
                     (!checksums_.enabled()  ? "reads not checked"
                      : crc32c_in_hardware() ? "reads checked"
                                             : "reads checked (slowly: the processor has no CRC32C instruction)") +
                     (options.verify_writes ? ", writes read back" : "") +
                     (cipher_ ? ", encrypted (AES-256-XTS)" : "")),
        verify_writes_(options.verify_writes), piece_bytes_max_(options.request_bytes_max),
        workers_({files_.capacity_bytes(), files_.alignment_bytes(), options.request_bytes_max, files_.stripe_bytes()},
                 [this](StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) {
                   if (operation == StoreOperation::kWrite) {
                     return checksums_.enabled() ? write_recorded(offset, bytes, buffer)
                                                 : write_kept(offset, bytes, buffer);
                   }
                   return checksums_.enabled() ? read_checked(offset, bytes, buffer)
                                               : move_piece(operation, offset, bytes, buffer);
                 }) {
    // Read-ahead past a request's end would stay in the page cache: nobody drops what nobody asked for.
    for (const SpillFile& file : files_.files()) {
      if (!file.direct()) (void)posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_RANDOM);
    }
  }

  static int thread_count(const DirectStoreOptions& options) {
    return std::min(options.worker_count * static_cast<int>(options.directories.size()), kWorkerCountMax);
  }
  Status start(int worker_count) { return workers_.start(worker_count); }
  std::string description() const override { return description_; }
  std::string notice() const override { return files_.notice(); }
  uint64_t drive_bytes() const override { return files_.drive_bytes(); }
  uint64_t capacity_bytes() const override { return files_.capacity_bytes(); }
  uint64_t alignment_bytes() const override { return files_.alignment_bytes(); }
  Status submit(const StoreRequest& request) override { return workers_.submit(request); }
  size_t poll(std::vector<StoreCompletion>& completions) override { return workers_.poll(completions); }
  void set_wake(void (*wake)(void*), void* context) override { workers_.set_wake(wake, context); }

 private:
  Status write_kept(uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status write_recorded(uint64_t offset, uint64_t bytes, std::byte* buffer);
  Status read_checked(uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status corruption(const UnitChecksums::Mismatch& first, const UnitChecksums::Mismatch& second) const;
  Status move_piece(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status move_raw(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status move_at(StoreOperation operation, const SpillFiles::Place& at, uint64_t bytes, std::byte* buffer) const;

  const IoTable table_;
  const SpillFiles files_;
  UnitChecksums checksums_;                         // by worker threads, each for the units of its piece
  const std::unique_ptr<const PageCipher> cipher_;  // null: nothing is encrypted
  const std::string description_;
  const bool verify_writes_;
  const uint64_t piece_bytes_max_;
  StoreWorkers workers_;  // last: its threads use the rest
};

Status DirectStore::write_kept(uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  Status status = move_piece(StoreOperation::kWrite, offset, bytes, buffer);
  if (!verify_writes_ || !status.ok()) return status;
  std::byte* const seen = worker_memory(piece_bytes_max_, files_.alignment_bytes());
  if (seen == nullptr)
    return failure(StoreOperation::kWrite, files_.place(offset), bytes, bytes, ENOMEM, "no memory to compare it");
  for (int attempt = 0;; ++attempt) {
    status = move_piece(StoreOperation::kRead, offset, bytes, seen);
    if (!status.ok() || memcmp(seen, buffer, bytes) == 0) return status;
    if (attempt > 0) break;
    status = move_piece(StoreOperation::kWrite, offset, bytes, buffer);
    if (!status.ok()) return status;
  }
  const auto first = static_cast<uint64_t>(std::mismatch(seen, seen + bytes, buffer).first - seen);
  return failure(StoreOperation::kWrite, files_.place(offset), bytes, bytes, EIO,
                 "it does not read back as it was written, twice; the first wrong byte is at " +
                     name_of(files_.place(offset + first)));
}

Status DirectStore::write_recorded(uint64_t offset, uint64_t bytes, std::byte* buffer) {
  std::array<uint32_t, kPieceUnitsMax> room;
  const auto made = checksums_.compute(offset, bytes, buffer, room);
  checksums_.forget(offset, bytes);  // of a write that fails half way nothing is known
  Status status = write_kept(offset, bytes, buffer);
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
  return Status::error(StatusCode::kCorruptPage, "the " + std::to_string(second.bytes) + " bytes at " +
                                                     name_of(files_.place(second.offset)) +
                                                     " are not what was written there: " + sums);
}

Status DirectStore::move_piece(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  if (cipher_ == nullptr) return move_raw(operation, offset, bytes, buffer);
  if (operation == StoreOperation::kRead) {
    Status status = move_raw(operation, offset, bytes, buffer);
    return status.ok() ? cipher_->decrypt(offset, bytes, buffer, buffer) : status;
  }
  std::byte* const hidden = worker_memory(piece_bytes_max_, files_.alignment_bytes());
  if (hidden == nullptr) return failure(operation, files_.place(offset), bytes, 0, ENOMEM, "no memory to encrypt into");
  Status status = cipher_->encrypt(offset, bytes, buffer, hidden);
  return status.ok() ? move_raw(operation, offset, bytes, hidden) : status;
}

Status DirectStore::move_raw(StoreOperation operation, uint64_t offset, uint64_t bytes, std::byte* buffer) const {
  for (uint64_t done = 0; done < bytes;) {
    const SpillFiles::Place at = files_.place(offset + done);
    const uint64_t part = std::min(at.bytes, bytes - done);
    if (Status status = move_at(operation, at, part, buffer + done); !status.ok()) return status;
    done += part;
  }
  return Status::success();
}

Status DirectStore::move_at(StoreOperation operation, const SpillFiles::Place& at, uint64_t bytes,
                            std::byte* buffer) const {
  const bool reading = operation == StoreOperation::kRead;
  const int descriptor = at.file->descriptor();
  const uint64_t alignment = files_.alignment_bytes();
  uint64_t done = 0;
  int stuck_calls = 0;
  while (done < bytes) {
    const int64_t count = reading ? table_.pread(descriptor, buffer + done, bytes - done, at.offset + done)
                                  : table_.pwrite(descriptor, buffer + done, bytes - done, at.offset + done);
    if (count < 0) {
      const int error = errno;
      if (error == EINTR) continue;
      return failure(operation, at, bytes, done, error, describe_failure(table_, error));
    }
    if (count == 0 && reading) return failure(operation, at, bytes, done, 0, "file truncated");
    // Direct calls must go on at an aligned offset, so an odd rest is moved once more.
    const auto moved = static_cast<uint64_t>(count);
    const uint64_t usable = at.file->direct() ? moved / alignment * alignment : moved;
    stuck_calls = usable == 0 ? stuck_calls + 1 : 0;
    if (stuck_calls > kStuckCallsMax) {
      return failure(operation, at, bytes, done, EIO, "the system makes no progress");
    }
    done += usable;
  }
  return at.file->direct() ? Status::success() : leave_page_cache(operation, at, bytes);
}

Status check_options(const DirectStoreOptions& options) {
  if (options.worker_count < kWorkerCountMin || options.worker_count > kWorkerCountMax) {
    return Status::error(StatusCode::kInvalidArgument, "worker_count " + std::to_string(options.worker_count) +
                                                           ": give " + std::to_string(kWorkerCountMin) + " to " +
                                                           std::to_string(kWorkerCountMax));
  }
  if (options.request_bytes_max == 0 || options.request_bytes_max > kGiB) {
    return Status::error(StatusCode::kInvalidArgument, "request_bytes_max " +
                                                           std::to_string(options.request_bytes_max) +
                                                           ": give 4096 to 1073741824");
  }
  const uint64_t unit = options.verify_unit_bytes;
  if (options.verify && (!std::has_single_bit(unit) || unit < 4 * kKiB || unit > kGiB)) {
    return Status::error(StatusCode::kInvalidArgument,
                         "verify_unit_bytes " + std::to_string(unit) + ": give a power of two from 4096 to 1073741824");
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
  SpillFiles files;
  const uint64_t stripe = std::max(options.stripe_bytes, options.verify ? options.verify_unit_bytes : 0);
  status = files.open({options.directories, options.capacity_bytes, stripe, options.direct}, table);
  if (!status.ok()) return status;
  DirectStoreOptions effective = options;
  effective.request_bytes_max = round_up(options.request_bytes_max, files.alignment_bytes());
  UnitChecksums checksums;
  if (options.verify) {
    const uint64_t unit = std::max(options.verify_unit_bytes, files.alignment_bytes());  // it may be read by itself
    if (status = checksums.open(files.capacity_bytes(), unit); !status.ok()) return status;
    // Cuts lie between units, or the units at the cuts would go unchecked.
    effective.request_bytes_max = std::min(round_up(options.request_bytes_max, unit), kPieceUnitsMax * unit);
  }
  std::unique_ptr<PageCipher> cipher;
  if (options.encrypt) {
    if (status = PageCipher::make(&cipher); !status.ok()) return status;
  }
  auto made =
      std::make_unique<DirectStore>(effective, table, std::move(files), std::move(checksums), std::move(cipher));
  status = made->start(DirectStore::thread_count(options));
  if (status.ok()) *store = std::move(made);
  return status;
}

}  // namespace tierpage
