#include "core/pager/page_lists.h"

#include <algorithm>

namespace tierpage {

void PageLists::forget(PageId id) {
  Page& page = memory_.pages[id];
  const auto is_it = [id](const Entry& entry) { return entry.first == id; };
  if (page.set_hinted(false)) std::erase_if(hinted_, is_it);
  if (page.set_cleanable(false)) std::erase_if(cleanable_, is_it);
}

void PageLists::add_hint(PageId id) {
  Page& page = memory_.pages[id];
  if (page.set_hinted(true)) return;
  hinted_.emplace_back(id, page.region);
}

std::vector<PageLists::Entry> PageLists::take_hints() {
  for (const Entry& entry : hinted_) memory_.pages[entry.first].set_hinted(false);
  return std::exchange(hinted_, {});
}

void PageLists::drop_first_cleanable() {
  memory_.pages[cleanable_.front().first].set_cleanable(false);
  cleanable_.pop_front();
}

void PageLists::check_invariants() const {
  std::vector<Entry> hints = hinted_;
  std::sort(hints.begin(), hints.end());
  TP_ASSERT(std::adjacent_find(hints.begin(), hints.end()) == hints.end());
  std::vector<Entry> cleanable(cleanable_.begin(), cleanable_.end());
  std::sort(cleanable.begin(), cleanable.end());
  TP_ASSERT(std::adjacent_find(cleanable.begin(), cleanable.end()) == cleanable.end());
  size_t hinted = 0, to_clean = 0;
  for (const PageId id : memory_.pages.ids()) {
    hinted += memory_.pages[id].hinted;
    to_clean += memory_.pages[id].cleanable;
  }
  for (const Entry& entry : hints) TP_ASSERT(same(entry) && memory_.pages[entry.first].hinted);
  for (const Entry& entry : cleanable) TP_ASSERT(same(entry) && memory_.pages[entry.first].cleanable);
  TP_ASSERT(hinted == hints.size() && to_clean == cleanable.size());
}

}  // namespace tierpage
