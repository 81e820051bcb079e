// Two lists of pages for later: hints (pages that the user asked to have) and pages to be written down ahead of need.
// Each names a page together with its region, since ids of gone pages are reused; the page's row says whether it stands
// there.
//
// Invariants (check_invariants): no page stands twice in a list; a page stands in a list exactly if its row says so.
#pragma once

#include <deque>
#include <utility>
#include <vector>

#include "core/pager/memory.h"

namespace tierpage {

class PageLists {
 public:
  using Entry = std::pair<PageId, RegionId>;
  explicit PageLists(Memory& memory) : memory_(memory) {}

  // Whether the row is still that page's.
  bool same(const Entry& entry) const {
    return memory_.pages.exists(entry.first) && memory_.pages[entry.first].region == entry.second;
  }
  void forget(PageId id);  // the page goes, or becomes another region's

  // --- hints, in the order in which they were given ------------------------------------------------------------------
  void add_hint(PageId id);  // however often a hint is given, it is kept once
  bool hints() const { return !hinted_.empty(); }
  std::vector<Entry> take_hints();

  // --- pages to be written, in the order of their last use -----------------------------------------------------------
  void add_cleanable(PageId id) {
    Page& page = memory_.pages[id];
    page.set_cleanable(true);
    cleanable_.emplace_back(id, page.region);
  }
  bool cleanable() const { return !cleanable_.empty(); }
  Entry first_cleanable() const { return cleanable_.front(); }
  void drop_first_cleanable();
  void check_invariants() const;

 private:
  Memory& memory_;
  std::vector<Entry> hinted_;
  std::deque<Entry> cleanable_;
};

}  // namespace tierpage
