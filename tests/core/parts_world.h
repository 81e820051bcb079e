// All parts of the pager, built from the ground up, without the Pager: its members are what a test drives.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "core/pager/prefetcher.h"
#include "core/pager/requests.h"
#include "manual_world.h"

namespace tierpage {

struct PartsWorld {
  explicit PartsWorld(const PagerConfig& config) : memory(config), foresight(config) {
    lower.host_space_ready(config.host_bytes_max, false);
  }
  PartsWorld(const PartsWorld&) = delete;
  PartsWorld& operator=(const PartsWorld&) = delete;

  Memory memory;
  Foresight foresight;
  Movements movements{memory};
  Departures departures{memory, movements, foresight};
  PageLists lists{memory};
  Guesses guesses{memory};
  RegionStore store{memory, foresight, departures, lists, guesses};
  LowerTiers lower{memory, movements, foresight, departures};
  Evictor evictor{memory, movements, foresight, departures, lower, store, guesses};
  Prefetcher prefetcher{memory, movements, foresight, departures, lower, store, evictor, lists};
  Requests requests{memory, movements, foresight, departures, lower, store, evictor, lists, guesses};

  void check() const {
    memory.check_invariants();
    foresight.check_invariants();
    movements.check_invariants();
    departures.check_invariants();
    lists.check_invariants();
    guesses.check_invariants();
    store.check_invariants();
    lower.check_invariants();
    evictor.check_invariants();
    prefetcher.check_invariants();
    requests.check_invariants();
  }
  // Everything that was told to the executor since the last call.
  std::vector<Action> actions() {
    std::vector<Action> taken;
    movements.take_actions(taken);
    return taken;
  }

  // --- pages ----------------------------------------------------------------------------------------------------
  PageId id(RegionId region, size_t index = 0) const { return memory.region(region).pages[index]; }
  Page& page(RegionId region, size_t index = 0) { return memory.pages[id(region, index)]; }

  // The movement of that page has ended well: the same steps as where completions come back.
  void finish(PageId id) {
    Page& page = memory.pages[id];
    const bool live = memory.live(page.region);
    movements.ended(page);
    switch (page.movement) {
      case Movement::kMap:
      case Movement::kFetch:
        if (live) movements.count_copy(page, page.movement);
        page.finish_arrival(live);
        break;
      case Movement::kWriteBack:
      case Movement::kSpill:
      case Movement::kStage:
        if (live) {
          lower.wrote(movements.count_copy(page, page.movement));
          page.finish_copy_down();
        } else {
          memory.lower(page.lower).give_back(page.abandon_copy_down());
        }
        break;
      case Movement::kUnmap: movements.return_frame(page.finish_unmap()); break;
      case Movement::kRead: page.finish_read(); break;
      case Movement::kNone: ADD_FAILURE() << "page " << id.value << " does not move"; break;
    }
    store.settle_freed(id);
  }
  // Every movement ends, and the next steps of what leaves, until nothing moves.
  void finish_all() {
    for (bool moved = true; moved;) {
      moved = false;
      for (const PageId id : memory.pages.ids()) {
        if (memory.pages[id].movement == Movement::kNone) continue;
        finish(id);
        moved = true;
      }
      if (!departures.none()) evictor.advance_leaving();
      moved = moved || movements.under_way() > 0;
    }
    actions();
    check();
  }

  // --- regions --------------------------------------------------------------------------------------------------
  RegionId open(uint64_t pages, StreamId stream = 0, Source source = {}) {
    const RegionId region = store.make(pages * kPage);
    if (!region.valid()) return region;
    AllocateRequest request;
    request.bytes = source.bytes > 0 ? source.bytes : pages * kPage;
    request.stream = stream;
    request.source = source;
    store.open(region, request);
    if (source.bytes > 0) store.adopt_source(region);
    return region;
  }
  // A tensor in DEVICE, nowhere else.
  RegionId make(uint64_t pages = 1, StreamId stream = 0) {
    const RegionId region = open(pages, stream);
    for (const PageId page : memory.region(region).pages) {
      EXPECT_TRUE(movements.start_arrival(page, false));
      finish(page);
    }
    memory.region(region).seen = true;
    return region;
  }
  void copy_to(RegionId region, Tier tier) {  // it stays where it is
    for (const PageId page : memory.region(region).pages) {
      movements.start_write_back(page, tier);
      finish(page);
    }
  }
  void unmap(RegionId region) {  // what has a copy below; nobody is told that it leaves
    for (const PageId page : memory.region(region).pages) {
      movements.start_unmap(page);
      finish(page);
    }
  }
  RegionId make_below(Tier tier, uint64_t pages = 1) {
    const RegionId region = make(pages);
    copy_to(region, tier);
    unmap(region);
    actions();
    return region;
  }
  // True if the copy of that page to a lower tier, or room for it, is under way or awaited.
  bool send_down(RegionId region) {
    LeavingPass pass;
    return lower.send_down(id(region), pass);
  }
  void free(RegionId region, std::initializer_list<Fence> fences = {}) {
    store.free(region, std::vector<Fence>(fences));
  }

  // --- uses -----------------------------------------------------------------------------------------------------
  // Told to the trace alone, as an operator of its own.
  void use(RegionId id, bool writes = false) {
    Region& region = memory.region(id);
    foresight.trace().note_operator(id.value);
    foresight.trace().append(region.key, writes, true);
    ++region.uses;
    region.writes += writes;
  }
  void use_in_turn(const std::vector<RegionId>& regions, uint64_t rounds, bool writes = false) {
    for (uint64_t round = 0; round < rounds; ++round) {
      for (const RegionId region : regions) use(region, writes);
    }
  }
};

inline size_t count(const std::vector<Action>& actions, ActionKind kind) {
  return static_cast<size_t>(
      std::count_if(actions.begin(), actions.end(), [kind](const Action& action) { return action.kind == kind; }));
}

// With plans, which leave so many pages for what comes early.
inline PagerConfig planning(PagerConfig config, uint64_t pages_early = 1) {
  config.prefetch = true;
  config.prefetch_bytes_max = pages_early * kPage;
  return config;
}

// Pages of up to four granules.
inline PagerConfig with_large_pages(PagerConfig config) {
  config.frame_bytes_max = 4 * kPage;
  return config;
}

}  // namespace tierpage
