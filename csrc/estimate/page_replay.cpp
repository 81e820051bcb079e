// Demand paging over a written-out program.
#include "estimate/page_replay.h"

#include <algorithm>
#include <bit>
#include <set>
#include <string>
#include <utility>

#include "core/future/residency_plan.h"

namespace tierpage::estimate {
namespace {

struct PageRow {
  uint64_t bytes = 0;
  uint32_t life = 0;
  bool resident = false;
  bool dirty = false;          // the only copy
  uint8_t list = 0;            // of the victims' lists, while it is in one
  uint32_t rank = 0;           // its place there
  uint32_t busy = kNoRequest;  // the request that holds it
};

class PageReplay {
 public:
  PageReplay(const UseString& string, const PageReplayOptions& options) : string_(string), options_(options) {
    first_page_.reserve(string.lives.size() + 1);
    for (uint32_t life = 0; life < string.lives.size(); ++life) {
      first_page_.push_back(static_cast<uint32_t>(pages_.size()));
      cut_into_pages(life);
    }
    first_page_.push_back(static_cast<uint32_t>(pages_.size()));
  }

  Status run(std::vector<Moved>* steps) {
    for (now_ = 0; now_ < string_.requests.size(); ++now_) {
      const Request& request = string_.requests[now_];
      if (request.kind == RequestKind::kFree) free(request.life);
      else if (request.kind == RequestKind::kStepEnd) steps->push_back(std::exchange(moved_, {}));
      else if (Status status = serve(request); !status.ok()) return status;
    }
    return Status::success();
  }

 private:
  // The lists that victims come from; within one the highest rank leaves first. LRU and kFarthest use only the first.
  enum List : uint8_t { kOnly, kCosts1, kCosts2, kListCount };

  // As Pager::cut_into_pages: descending powers of two.
  void cut_into_pages(uint32_t life) {
    for (uint64_t rest = string_.lives[life].bytes; rest > 0;) {
      PageRow page;
      page.bytes = std::min(std::bit_floor(rest), options_.page_bytes_max);
      page.life = life;
      pages_.push_back(page);
      rest -= page.bytes;
    }
  }

  Status serve(const Request& request) {
    bool fault = false;
    uint64_t arriving = 0;
    for (uint32_t u = request.begin; u < request.end; ++u) {
      const RegionUse& use = string_.uses[u];
      for (uint32_t p = first_page_[use.life]; p < first_page_[use.life + 1]; ++p) {
        PageRow& page = pages_[p];
        if (page.busy == now_) continue;
        page.busy = now_;
        if (page.resident) {
          lists_[page.list].erase({page.rank, p});
          continue;
        }
        arriving += page.bytes;
        if (use.fresh) continue;
        moved_.fetched_bytes += page.bytes;
        fault = true;
      }
    }
    moved_.faults += fault;
    used_bytes_ += arriving;
    while (used_bytes_ > options_.device_bytes) {
      if (!evict_one())
        return Status::error(StatusCode::kOutOfMemory, "request " + std::to_string(now_) + " does not fit the device");
    }
    for (uint32_t u = request.begin; u < request.end; ++u) touch(string_.uses[u]);
    for (uint32_t u = request.begin; u < request.end; ++u) let_go(string_.uses[u]);
    return Status::success();
  }

  void touch(const RegionUse& use) {
    for (uint32_t p = first_page_[use.life]; p < first_page_[use.life + 1]; ++p) {
      pages_[p].resident = true;
      pages_[p].dirty = pages_[p].dirty || use.write;
    }
  }

  // The pages may be victims from the next request on.
  void let_go(const RegionUse& use) {
    for (uint32_t p = first_page_[use.life]; p < first_page_[use.life + 1]; ++p) {
      PageRow& page = pages_[p];
      if (page.busy != now_) continue;  // the region was used twice by this request
      page.busy = kNoRequest;
      page.list = kOnly;
      page.rank = use.next;
      if (options_.victims == Victims::kLeastRecent) page.rank = ~now_;
      if (options_.victims == Victims::kFarthestByCost) rank_by_cost(page, use.next);
      lists_[page.list].insert({page.rank, p});
    }
  }

  void rank_by_cost(PageRow& page, uint32_t next) const {
    const bool dead = next == kNoRequest;
    if (page.dirty && !(dead && options_.drop_dead)) {
      page.list = dead ? kCosts1 : kCosts2;
      if (dead) page.rank = string_.lives[page.life].freed;
    } else if (!dead) {
      page.list = kCosts1;
    }
  }

  // Whose bytes are cheapest for as long as its absence gives room.
  bool evict_one() {
    int best = -1;
    double best_worth = 0;
    for (int list = 0; list < kListCount; ++list) {
      if (lists_[list].empty()) continue;
      const double distance = static_cast<double>(lists_[list].rbegin()->first) - now_;
      const double worth = list == kCosts2 ? distance / 2 : distance;
      if (best >= 0 && (best == kOnly || worth <= best_worth)) continue;
      best = list;
      best_worth = worth;
    }
    if (best < 0) return false;
    const auto victim = std::prev(lists_[best].end());
    PageRow& page = pages_[victim->second];
    lists_[best].erase(victim);
    const bool dead = options_.drop_dead && options_.victims != Victims::kLeastRecent && page.rank == kNoRequest;
    if (page.dirty && !dead) moved_.written_bytes += page.bytes;
    page.resident = page.dirty = false;
    used_bytes_ -= page.bytes;
    return true;
  }

  void free(uint32_t life) {
    for (uint32_t p = first_page_[life]; p < first_page_[life + 1]; ++p) {
      PageRow& page = pages_[p];
      if (!page.resident) continue;
      lists_[page.list].erase({page.rank, p});
      page.resident = false;
      used_bytes_ -= page.bytes;
    }
  }

  const UseString& string_;
  const PageReplayOptions& options_;
  std::vector<PageRow> pages_;
  std::vector<uint32_t> first_page_;                           // by life, and one past the last
  std::set<std::pair<uint32_t, uint32_t>> lists_[kListCount];  // (rank, page)
  uint32_t now_ = 0;                                           // the request
  uint64_t used_bytes_ = 0;
  Moved moved_;
};

}  // namespace

Status replay_pages(const UseString& string, const PageReplayOptions& options, std::vector<Moved>* steps) {
  return PageReplay(string, options).run(steps);
}

Moved interval_plan(const UseString& string, uint64_t device_bytes, uint32_t first_step, uint32_t last_step) {
  Trace trace(string.uses.size() + 1);
  TraceFeed feed(string, trace);
  uint64_t begin = 0, end = 0;
  uint32_t step = 0;
  for (const Request& request : string.requests) {
    feed.append(request);
    if (request.kind != RequestKind::kStepEnd) continue;
    ++step;
    if (step == first_step) begin = trace.end();
    if (step == last_step) end = trace.end();
  }
  ResidencyPlan plan;
  plan.build(trace, begin, end, device_bytes);
  return {plan.fetched_bytes(), plan.written_bytes(), 0};
}

}  // namespace tierpage::estimate
