// Every transition of a page row from every reachable state: it works where it is allowed, and throws InternalError
// where it is not. Method: a breadth-first walk over all states that the transitions reach; after each step the
// invariants hold, and a refused transition is one that the table below forbids.
#include "core/model/page_table.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace tierpage {
namespace {

const SpanList kSpans = {{0, 64}};

struct Transition {
  const char* name;
  std::function<void(Page&)> run;
  std::function<bool(const Page&)> allowed;
};

bool at_rest(const Page& page) { return page.movement == Movement::kNone; }

std::vector<Transition> transitions() {
  const auto fetch = [](Tier tier) {
    return Transition{tier == Tier::kHost ? "fetch from host" : "fetch from nvme",
                      [tier](Page& p) { p.start_arrival(Movement::kFetch, FrameId(1), tier); },
                      [tier](const Page& p) { return at_rest(p) && !p.mapped && p.is_valid(tier); }};
  };
  const auto write_back = [](Tier tier) {
    return Transition{tier == Tier::kHost ? "write back to host" : "write back to nvme",
                      [tier](Page& p) { p.start_write_back(tier, kSpans); },
                      [tier](const Page& p) { return at_rest(p) && p.is_valid(Tier::kDevice) && !p.is_valid(tier); }};
  };
  const auto arriving = [](const Page& p) { return p.movement == Movement::kMap || p.movement == Movement::kFetch; };
  const auto copying = [](const Page& p) {
    return p.movement == Movement::kWriteBack || p.movement == Movement::kSpill || p.movement == Movement::kStage;
  };
  return {
      {"map", [](Page& p) { p.start_arrival(Movement::kMap, FrameId(1), Tier::kHost); },
       [](const Page& p) { return at_rest(p) && !p.mapped && !p.has_content(); }},
      fetch(Tier::kHost),
      fetch(Tier::kNvme),
      {"arrived", [](Page& p) { p.finish_arrival(true); }, arriving},
      {"arrival failed", [](Page& p) { p.abandon_arrival(false); }, arriving},
      write_back(Tier::kHost),
      write_back(Tier::kNvme),
      {"spill", [](Page& p) { p.start_spill(kSpans); },
       [](const Page& p) { return at_rest(p) && p.is_valid(Tier::kHost) && !p.is_valid(Tier::kNvme); }},
      {"stage", [](Page& p) { p.start_stage(kSpans); },
       [](const Page& p) { return at_rest(p) && p.is_valid(Tier::kNvme) && !p.is_valid(Tier::kHost); }},
      {"copied down", [](Page& p) { p.finish_copy_down(); }, copying},
      {"copy down failed", [](Page& p) { (void)p.abandon_copy_down(); }, copying},
      {"unmap", [](Page& p) { p.start_unmap(); },
       [](const Page& p) { return at_rest(p) && p.mapped && p.pins == 0 && p.valid != 1; }},
      {"unmapped", [](Page& p) { (void)p.finish_unmap(); },
       [](const Page& p) { return p.movement == Movement::kUnmap; }},
      {"write", [](Page& p) { p.write(); },
       [](const Page& p) { return at_rest(p) && p.mapped && p.host.empty() && p.nvme.empty() && !p.sourced; }},
      {"read", [](Page& p) { p.start_read(); }, [](const Page& p) { return at_rest(p) && p.is_valid(Tier::kHost); }},
      {"was read", [](Page& p) { p.finish_read(); }, [](const Page& p) { return p.movement == Movement::kRead; }},
      {"adopt a source", [](Page& p) { p.adopt_source(); },
       [](const Page& p) {
         return at_rest(p) && !p.mapped && !p.has_content() && p.host.empty() && p.nvme.empty() && !p.sourced;
       }},
  };
}

using Key = std::tuple<int, int, bool, int, bool, bool>;
Key key_of(const Page& p) {
  return {static_cast<int>(p.movement), p.valid, p.mapped, index_of(p.lower), p.pins > 0, p.sourced};
}

Page fresh_page() {
  Page page;
  page.region = RegionId(0);
  page.bytes = 64;
  return page;
}

TEST(PageTable, EveryTransitionFromEveryReachableState) {
  std::map<Key, Page> reached;
  std::vector<Page> open = {fresh_page()};
  reached[key_of(open.back())] = open.back();
  int refused = 0;
  while (!open.empty()) {
    const Page page = open.back();
    open.pop_back();
    for (const Transition& transition : transitions()) {
      Page after = page;
      const std::string what = std::string(transition.name) + " when " + name_of(page.state()) + ", movement " +
                               std::to_string(static_cast<int>(page.movement)) + ", valid " +
                               std::to_string(page.valid);
      if (!transition.allowed(page)) {
        EXPECT_THROW(transition.run(after), InternalError) << what;
        ++refused;
        continue;
      }
      ASSERT_NO_THROW(transition.run(after)) << what;
      ASSERT_NO_THROW(after.check_invariants()) << what;
      if (reached.emplace(key_of(after), after).second) open.push_back(after);
    }
    if (at_rest(page) && page.is_valid(Tier::kHost) && page.valid != 2) {
      Page after = page;
      EXPECT_EQ(after.drop(Tier::kHost), kSpans);
      after.check_invariants();
      if (reached.emplace(key_of(after), after).second) open.push_back(after);
    }
    if (at_rest(page) && page.sourced && page.mapped) {  // as before a write
      Page after = page;
      EXPECT_TRUE(after.drop(Tier::kNvme).empty());
      EXPECT_FALSE(after.sourced);
      (void)after.drop(Tier::kHost);
      after.check_invariants();
      if (reached.emplace(key_of(after), after).second) open.push_back(after);
    }
  }
  EXPECT_GT(reached.size(), 15u);
  EXPECT_GT(refused, 100);
}

TEST(PageTable, PinsAndTheOnlyCopyKeepAPageMapped) {
  Page page = fresh_page();
  page.start_arrival(Movement::kMap, FrameId(1), Tier::kHost);
  page.finish_arrival(true);
  EXPECT_TRUE(page.dirty());
  EXPECT_THROW(page.start_unmap(), InternalError);  // it would lose the content
  page.start_write_back(Tier::kHost, kSpans);
  page.finish_copy_down();
  EXPECT_EQ(page.state(), PageState::kResidentClean);
  page.pins = 1;
  EXPECT_THROW(page.start_unmap(), InternalError);
  page.pins = 0;
  page.start_unmap();
  EXPECT_EQ(page.state(), PageState::kDeparting);
}

TEST(PageTable, TransferIdsOfAReusedRowDiffer) {
  PageTable pages;
  const PageId first = pages.add(RegionId(0), 0, 64);
  pages[first].start_arrival(Movement::kMap, FrameId(0), Tier::kHost);
  const TransferId old = pages[first].transfer(first);
  pages[first].abandon_arrival(false);
  pages.remove(first);
  EXPECT_FALSE(pages.exists(first));
  const PageId second = pages.add(RegionId(1), 0, 64);
  ASSERT_EQ(first, second);
  pages[second].start_arrival(Movement::kMap, FrameId(0), Tier::kHost);
  EXPECT_NE(pages[second].transfer(second), old);
}

TEST(PageTable, FencesKeepTheNewestPerStream) {
  Page page = fresh_page();
  for (const Fence fence : {Fence{0, 5}, Fence{1, 2}, Fence{0, 3}, Fence{1, 9}, Fence{2, 0}}) page.add_fence(fence);
  EXPECT_EQ(page.fences, (std::vector<Fence>{{0, 5}, {1, 9}}));
}

}  // namespace
}  // namespace tierpage
