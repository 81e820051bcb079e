// The NVMe tier as an interface: a store of fixed capacity addressed by byte offset, with asynchronous reads and
// writes.
//
// Implementations under one conformance suite (tests/tiers): DirectStore (an unlinked, preallocated spill file,
// O_DIRECT, worker threads), MemoryStore (RAM; tests, and machines without a disk) and FaultyStore (wraps another
// store and fails chosen calls).
//
// Contract. A request is one contiguous transfer; offset, bytes and buffer address are multiples of alignment_bytes().
// Short counts are completed and EINTR is retried inside. Errors come back in the completion: kStorageError (EIO, ...),
// kStorageFull (ENOSPC, EDQUOT, EFBIG), each with errno, file offset and byte counts in the message; kCorruptPage where
// a store that checks reads got, twice, other bytes than were written (a write that does not read back, twice, is a
// kStorageError: nothing is lost). A failed write leaves the target range undefined
// and every other range untouched. Requests complete in any order. At least
// 4 requests run at once. submit() and poll() may be called by different threads; nothing calls back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

enum class StoreOperation : uint8_t { kRead = 0, kWrite = 1 };

struct StoreRequest {
  uint64_t cookie = 0;  // handed back on completion
  StoreOperation operation = StoreOperation::kRead;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  void* buffer = nullptr;
};

struct StoreCompletion {
  uint64_t cookie = 0;
  Status status;
};

class BlockStore {
 public:
  virtual ~BlockStore() = default;              // waits for running requests, drops queued ones, gives the space back
  virtual std::string description() const = 0;  // one line: kind, directory, direct or buffered
  virtual std::string notice() const { return {}; }   // what a person should be told once, empty: nothing
  virtual uint64_t drive_bytes() const { return 0; }  // size of the drives behind it, 0: not known
  virtual uint64_t capacity_bytes() const = 0;
  virtual uint64_t alignment_bytes() const = 0;  // power of two, at most 4096 in practice

  virtual Status submit(const StoreRequest& request) = 0;
  // Appends what has finished; returns the number of requests not yet reported.
  virtual size_t poll(std::vector<StoreCompletion>& completions) = 0;
  // Called once before the first submit: `wake` is invoked from a worker thread after each completion became visible
  // to poll(), perhaps when poll() has reported it already: `context` must outlive the store. It must not block.
  // Optional.
  virtual void set_wake(void (*wake)(void*), void* context) = 0;
};

struct DirectStoreOptions {
  std::vector<std::string> directories;  // one, or one for each drive: offsets are striped over them
  uint64_t capacity_bytes = 0;           // taken in full at the start, in equal parts; kStorageFull if there is no room
  int worker_count = 8;                  // for each directory
  uint64_t stripe_bytes = 4 * kMiB;      // a power of two; one directory has no stripes
  uint64_t request_bytes_max = 4 * kMiB;  // larger requests are cut inside and run side by side
  bool direct = true;                     // false: buffered on purpose. true falls back where O_DIRECT is refused
  bool verify = true;                     // reads are checked against the CRC32C that the write left in RAM
  bool verify_writes = false;             // each write is read back and compared; one that differs is made once more
  bool encrypt = false;  // what lies on the disk, with a key that only this process has (tiers/page_cipher.h)
  // What is written and read as a whole, and so checked: a power of two, at least 4096. Requests that cover a unit in
  // part are right, but that unit is not checked until it is written whole again.
  uint64_t verify_unit_bytes = 64 * kKiB;
};

// kInvalidArgument for a missing, unwritable, non-directory or symlinked path and for tmpfs (message: value, remedy);
// kStorageFull when the space cannot be taken.
Status make_direct_store(const DirectStoreOptions& options, std::unique_ptr<BlockStore>* store);
Status make_memory_store(uint64_t capacity_bytes, std::unique_ptr<BlockStore>* store);

// System calls of DirectStore as a table, so that tests inject errno, short counts and delays at call N.
struct IoTable {
  int64_t (*pread)(int fd, void* buffer, uint64_t bytes, uint64_t offset);
  int64_t (*pwrite)(int fd, const void* buffer, uint64_t bytes, uint64_t offset);
  // Optional. Called once nothing moves any more, before the descriptor is closed.
  void (*closing)(int fd) = nullptr;
  // Optional. Words for the errno of this thread's last failed call; without it the system's.
  std::string (*describe)(int system_error) = nullptr;
};
const IoTable& system_io_table();
Status make_direct_store(const DirectStoreOptions& options, const IoTable& table, std::unique_ptr<BlockStore>* store);

}  // namespace tierpage
