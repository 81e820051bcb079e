// Which links each kind of transfer takes, and how it is cut.
#include "engine/route.h"

#include <gtest/gtest.h>

namespace tierpage::testing {
namespace {

constexpr uint64_t kAlignment = 4 * kKiB;

RouteLimits limits(bool store_reaches_device = false) {
  return {.piece_bytes_up = 16 * kMiB,
          .piece_bytes_down = 8 * kMiB,
          .slot_bytes = 1 * kMiB,
          .slot_alignment = kAlignment,
          .store_reaches_device = store_reaches_device};
}

Action action_of(ActionKind kind, Tier lower, uint64_t bytes = 64 * kMiB) {
  Action action;
  action.kind = kind;
  action.lower = lower;
  action.bytes = bytes;
  return action;
}

std::vector<Link> hops_of(const Route& route) { return {route.hops.begin(), route.hops.begin() + route.hop_count}; }

struct Row {
  ActionKind kind;
  Tier lower;
  bool store_reaches_device;
  std::vector<Link> hops;
  EventKind event;
  Route::Memory memory;
  bool stored;
  uint64_t piece_bytes;
};

TEST(RouteTest, EachKindOfTransferHasItsHops) {
  using enum Link;
  using enum ActionKind;
  using Memory = Route::Memory;
  const Row rows[] = {
      {kFetch, Tier::kHost, false, {kToDevice}, EventKind::kHostToDevice, Memory::kArena, false, 16 * kMiB},
      {kFetch, Tier::kHost, true, {kToDevice}, EventKind::kHostToDevice, Memory::kArena, false, 16 * kMiB},
      {kFetch, Tier::kNvme, false, {kNvmeRead, kToDevice}, EventKind::kNvmeToDevice, Memory::kSlot, true, kMiB},
      {kFetch, Tier::kNvme, true, {kNvmeRead}, EventKind::kNvmeToDevice, Memory::kDevice, true, 16 * kMiB},
      {kWriteBack, Tier::kHost, false, {kToHost}, EventKind::kDeviceToHost, Memory::kArena, false, 8 * kMiB},
      {kWriteBack, Tier::kNvme, false, {kToHost, kNvmeWrite}, EventKind::kDeviceToNvme, Memory::kSlot, true, kMiB},
      {kWriteBack, Tier::kNvme, true, {kNvmeWrite}, EventKind::kDeviceToNvme, Memory::kDevice, true, 8 * kMiB},
      {kSpill, Tier::kNvme, false, {kNvmeWrite}, EventKind::kHostToNvme, Memory::kArena, true, 16 * kMiB},
      {kStage, Tier::kHost, false, {kNvmeRead}, EventKind::kNvmeToHost, Memory::kArena, true, 16 * kMiB},
      {kStage, Tier::kNvme, true, {kNvmeRead}, EventKind::kNvmeToHost, Memory::kArena, true, 16 * kMiB},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(std::string(name_of(row.event)) + (row.store_reaches_device ? ", direct" : ""));
    const Route route = route_of(action_of(row.kind, row.lower), limits(row.store_reaches_device));
    EXPECT_EQ(hops_of(route), row.hops);
    EXPECT_EQ(route.event, row.event);
    EXPECT_EQ(route.memory, row.memory);
    EXPECT_EQ(route.stored, row.stored);
    EXPECT_EQ(route.piece_bytes, row.piece_bytes);
    EXPECT_FALSE(route.sourced);
  }
}

TEST(RouteTest, ASourceIsReadThroughASlotInEqualPiecesEvenIfTheStoreReachesTheDevice) {
  Action action = action_of(ActionKind::kFetch, Tier::kNvme, kMiB);
  action.sourced = true;
  const Route route = route_of(action, limits(true));
  EXPECT_EQ(hops_of(route), (std::vector<Link>{Link::kNvmeRead, Link::kToDevice}));
  EXPECT_TRUE(route.sourced && route.staged() && !route.stored);
  EXPECT_EQ(route.piece_bytes, 512 * kKiB);  // a slot less 4 KiB holds not all of it
}

TEST(RouteTest, ASourceThatGoesToRamIsReadInPlaceAndOneOfAPageInRamDoesNotCount) {
  Action stage = action_of(ActionKind::kStage, Tier::kHost);
  stage.sourced = true;
  const Route staged = route_of(stage, limits());
  EXPECT_TRUE(staged.sourced && !staged.staged());
  EXPECT_EQ(staged.piece_bytes, 16 * kMiB);
  Action fetch = action_of(ActionKind::kFetch, Tier::kHost);
  fetch.sourced = true;
  EXPECT_FALSE(route_of(fetch, limits()).sourced);
}

std::vector<Part> parts_of(const Action& action, const Route& route) {
  std::vector<Part> parts;
  Cutter cutter(action, route);
  for (Part part; cutter.next(&part);) parts.push_back(part);
  return parts;
}

TEST(CutterTest, PartsAreContiguousOnBothSides) {
  Action action = action_of(ActionKind::kSpill, Tier::kNvme, 12 * kKiB);
  action.host = {{100 * kKiB, 8 * kKiB}, {0, 4 * kKiB}};
  action.nvme = {{200 * kKiB, 4 * kKiB}, {300 * kKiB, 8 * kKiB}};
  const std::vector<Part> parts = parts_of(action, route_of(action, limits()));
  ASSERT_EQ(parts.size(), 3u);
  const uint64_t arena[] = {100 * kKiB, 104 * kKiB, 0}, nvme[] = {200 * kKiB, 300 * kKiB, 304 * kKiB};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(parts[i].bytes, 4 * kKiB);
    EXPECT_EQ(parts[i].arena_offset, arena[i]);
    EXPECT_EQ(parts[i].nvme_offset, nvme[i]);
  }
}

TEST(CutterTest, NoPartIsLargerThanTheRouteAllowsAndAllBytesAreCovered) {
  Action action = action_of(ActionKind::kWriteBack, Tier::kHost, 20 * kMiB);
  action.device_offset = kGiB;
  action.host = {{0, 20 * kMiB}};
  const std::vector<Part> parts = parts_of(action, route_of(action, limits()));
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].bytes, 8 * kMiB);
  EXPECT_EQ(parts[2].bytes, 4 * kMiB);
  EXPECT_EQ(parts[2].done, 16 * kMiB);
  EXPECT_EQ(parts[2].arena_offset, 16 * kMiB);
}

TEST(CutterTest, WhatAPageHasBeyondItsSourceIsNotRead) {
  Action action = action_of(ActionKind::kFetch, Tier::kNvme, 3 * kMiB);
  action.sourced = true;
  action.source = {1001, kMiB};
  const Route route = route_of(action, limits());
  uint64_t read = 0, done = 0;
  for (const Part& part : parts_of(action, route)) {
    EXPECT_EQ(part.nvme_offset, 1001 + done);
    EXPECT_LE(part.bytes + kAlignment, limits().slot_bytes);
    read += part.source_bytes;
    done += part.bytes;
  }
  EXPECT_EQ(done, 3 * kMiB);
  EXPECT_EQ(read, kMiB);
}

}  // namespace
}  // namespace tierpage::testing
