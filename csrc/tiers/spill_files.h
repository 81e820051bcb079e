// The spill files of one store as one range of offsets: one file for each drive, striped.
//
// Stripe i, the bytes [i, i + 1) * stripe_bytes of the store, lies in file i % n at (i / n) * stripe_bytes. All files
// have the same size, a whole number of stripes, so the slowest drive sets the pace and the smallest the capacity; with
// one file offsets are its own. Space is taken in full in each before any is used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/model/status.h"
#include "tiers/spill_file.h"

namespace tierpage {

struct SpillFilesOptions {
  std::vector<std::string> directories;
  uint64_t capacity_bytes = 0;  // of all together; rounded up to a stripe in each
  uint64_t stripe_bytes = 4 * kMiB;
  bool direct = true;
};

class SpillFiles {
 public:
  struct Place {
    const SpillFile* file = nullptr;
    uint64_t offset = 0;  // in the file
    uint64_t bytes = 0;   // that lie there in one piece
  };

  // Errors as make_direct_store(); each names its directory. After an error nothing is taken.
  Status open(const SpillFilesOptions& options, const IoTable& table);

  Place place(uint64_t offset) const;
  const std::vector<SpillFile>& files() const { return files_; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t alignment_bytes() const { return alignment_bytes_; }                    // the largest of the files'
  uint64_t stripe_bytes() const { return files_.size() > 1 ? stripe_bytes_ : 0; }  // 0: one file, nothing is striped
  bool direct() const;                                                             // every one
  std::string description() const;  // "spill file in /a, direct", "2 spill files in /a and /b, ..."
  std::string notice() const;       // what fell back to buffered I/O and why, empty: nothing did
  uint64_t drive_bytes() const;     // size of the file systems, each counted once

 private:
  std::vector<SpillFile> files_;
  uint64_t capacity_bytes_ = 0;
  uint64_t alignment_bytes_ = 4096;
  uint64_t stripe_bytes_ = 0;
};

}  // namespace tierpage
