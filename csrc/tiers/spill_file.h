// Owns the spill file: a file without a name, mode 0600, its space taken in full, set to direct I/O where that works.
//
// Nothing outlives the process: the file has no name from the start (O_TMPFILE), or, where the file system cannot do
// that, loses its name right after it was created, while it is still empty.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "core/model/status.h"
#include "tiers/block_store.h"

namespace tierpage {

struct SpillFileOptions {
  std::string directory;
  uint64_t capacity_bytes = 0;  // rounded up to the alignment
  bool direct = true;
  bool nameless = true;  // false: always the create-then-unlink way (for tests of it)
};

class SpillFile {
 public:
  static constexpr const char* kBufferedAsAsked = "buffered as asked";
  SpillFile() = default;
  ~SpillFile();  // gives the space back at once, even if a forked child still holds the descriptor
  SpillFile(SpillFile&& other) noexcept;
  SpillFile& operator=(SpillFile&&) = delete;

  // The direct probe goes through `table`. Errors as make_direct_store().
  Status open(const SpillFileOptions& options, const IoTable& table);

  int descriptor() const { return descriptor_; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t alignment_bytes() const { return alignment_bytes_; }
  bool direct() const { return direct_; }
  const std::string& mode() const { return mode_; }  // for people: direct, or why not
  const std::string& directory() const { return directory_; }

 private:
  Status take_space(const std::string& directory);
  Status choose_mode(bool want_direct, const IoTable& table);

  int descriptor_ = -1;
  void (*closing_)(int) = nullptr;  // of the table that moves the bytes
  pid_t owner_process_ = -1;
  uint64_t capacity_bytes_ = 0;
  uint64_t alignment_bytes_ = 4096;
  bool direct_ = false;
  std::string mode_;
  std::string directory_;
};

// describe_system_error() with what the table that moves the bytes has to say.
std::string describe_failure(const IoTable& table, int system_error);

}  // namespace tierpage
