// Files of the user's that are only read (checkpoints) and hold the content of regions until it changes.
//
// Owns a descriptor of each file, opened anew for direct I/O where the file system allows it, and the worker threads
// that read. All files lie in one address space: add() gives each its place, and whoever knows a place reads from it
// without knowing files. Nothing here can write: descriptors are O_RDONLY.
//
// A file that is replaced under its name (renamed over, as every careful writer does) stays what it was: the descriptor
// holds the old one. A file that is written or cut in place does not: each read compares size and time of modification
// with those at add(), before and after, and is an error when they differ. Its bytes are never handed on.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/model/status.h"
#include "locks/mutex.h"
#include "tiers/block_store.h"
#include "tiers/store_workers.h"

namespace tierpage {

struct SourceFilesOptions {
  int worker_count = 8;
  bool direct = true;  // false: buffered on purpose. true falls back where O_DIRECT is refused
};

class SourceFiles {
 public:
  static constexpr uint64_t kAlignment = 4096;  // of places, and of requests that are read without a copy

  explicit SourceFiles(const SourceFilesOptions& options) : SourceFiles(options, system_io_table()) {}
  SourceFiles(const SourceFilesOptions& options, const IoTable& table);
  ~SourceFiles();  // waits for running requests
  Status start();

  // What the caller has read of a file before add(), its header, is of this version.
  struct Version {
    uint64_t bytes = 0;
    int64_t modified_ns = 0;
  };
  // The file behind `descriptor`, which stays the caller's. `name` is for messages. kInvalidArgument for anything but a
  // regular file, kStorageError where it is not of the `known` version any more. On success *place is the address of
  // its first byte, a multiple of kAlignment.
  Status add(int descriptor, const std::string& name, const Version* known, uint64_t* place);
  void remove(uint64_t place);  // nothing of it may be under way
  size_t count() const;
  std::string description(uint64_t place) const;  // for people: name, direct or buffered and why

  // A read as with BlockStore; any offset, bytes and address will do, but only where all three are multiples of
  // kAlignment do the bytes go straight into the buffer. May end beyond the file's end, within its last kAlignment
  // bytes: zeros are read there. Errors: kStorageError with file, place and errno, also farther beyond the end.
  Status submit(const StoreRequest& request);
  size_t poll(std::vector<StoreCompletion>& completions) { return workers_.poll(completions); }
  void set_wake(void (*wake)(void*), void* context) { workers_.set_wake(wake, context); }
  // The same in the calling thread, and nothing beyond the file's end.
  Status read_now(uint64_t offset, uint64_t bytes, std::byte* buffer);

 private:
  struct File;
  std::shared_ptr<const File> file_at(uint64_t offset) const;
  Status check(uint64_t offset, uint64_t bytes, uint64_t end_alignment) const;
  Status read(uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status read_through_copy(const File& file, uint64_t offset, uint64_t bytes, std::byte* buffer) const;
  Status read_blocks(const File& file, uint64_t offset, uint64_t bytes, std::byte* buffer) const;

  const SourceFilesOptions options_;
  const IoTable table_;
  mutable Mutex mutex_{LockRank::kSourceFiles};  // guards files_ alone; never held while something is read
  std::map<uint64_t, std::shared_ptr<const File>> files_ TP_GUARDED_BY(mutex_);  // by number
  StoreWorkers workers_;                                                         // last: its threads use the rest
};

}  // namespace tierpage
