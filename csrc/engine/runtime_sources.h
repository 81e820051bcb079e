// Files that regions have as their source: opening, reading, letting go; and what RAM holds of a region, for who saves
// it.
//
// Borrows the tiers, among which the open files stand, and counts uses in the registry. Takes the core's lock, and
// before it close_mutex while a file is opened: one opens, and nobody closes meanwhile. Callers hold neither. Files are
// opened and read without the core's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/locked_core.h"
#include "engine/runtime_options.h"
#include "engine/source_registry.h"
#include "engine/tier_set.h"
#include "engine/watchdog.h"
#include "locks/mutex.h"

namespace tierpage {

class RuntimeSources {
 public:
  struct Parts {
    LockedCore& core;
    TierSet& tiers;
    SourceRegistry& registry;
    Mutex& close_mutex;
    const RuntimeOptions& options;
    Watchdog& watchdog;
  };
  explicit RuntimeSources(const Parts& parts)
      : core_(parts.core), tiers_(parts.tiers), registry_(parts.registry), close_mutex_(parts.close_mutex),
        options_(parts.options), watchdog_(parts.watchdog) {}

  // A file is open until it was let go and no region has it as its source any more.
  Status add(int descriptor, const std::string& name, const SourceFiles::Version* known, uint64_t* place);
  void let_go(uint64_t place);
  Status read(uint64_t offset, uint64_t bytes, std::byte* buffer);
  // Copies what RAM holds of a region's bytes from `first` on, at most to the end of the page there: the number of
  // bytes. 0: that page has no copy in RAM at rest, *page_end tells where the next one begins.
  // A coded page is decoded once for reads that follow one another, as long as nothing happens to it: its bytes are
  // kept until another page is decoded, or until reading_ends().
  uint64_t read_host(uint64_t address, uint64_t first, uint64_t bytes, std::byte* buffer, uint64_t* page_end);
  void reading_ends();
  // Bytes of a region whose content is still the source's: first byte in the region, place, bytes; merged.
  struct Run {
    uint64_t first = 0;
    Source source;
  };
  std::vector<Run> runs_of(uint64_t address);

 private:
  // Content of a page as its copy in RAM had it after that movement. A copy in RAM comes only by a movement: as long as
  // there is one, and the page has not moved since, it is of that content.
  struct Decoded {
    PageId page;
    uint32_t movement_serial = 0;
    std::vector<std::byte> bytes;
  };
  Status open();
  // Null: what lies there is no code of the page, or there is no memory to decode it in.
  std::shared_ptr<const Decoded> decoded(PageId id, uint32_t movement_serial, const SpanList& spans, uint64_t stored,
                                         uint64_t page_bytes) const;

  LockedCore& core_;
  TierSet& tiers_;
  SourceRegistry& registry_ TP_GUARDED_BY(core_.mutex());
  Mutex& close_mutex_;
  const RuntimeOptions& options_;
  Watchdog& watchdog_ TP_GUARDED_BY(core_.mutex());
  std::shared_ptr<const Decoded> decoded_ TP_GUARDED_BY(core_.mutex());  // the last one; null: none
};

}  // namespace tierpage
