// What happens beside the operators of a random program: frees, hints, budgets; and its end.
#include <algorithm>

#include "sim_program.h"

namespace tierpage::sim {
namespace {

constexpr int kTicksMax = 6000;  // bound of the liveness phase

}  // namespace

void SimProgram::free_random() {
  const uint64_t serial = random_region(random_);
  if (serial != 0 && regions_.at(serial).waiting == 0) free_region(serial);
}

void SimProgram::free_region(uint64_t serial) {
  const ModelRegion& region = regions_.at(serial);
  std::vector<Fence> fences;
  for (uint64_t i = 0; i < plan_.world.streams; ++i) fences.push_back(world_.last_fence(static_cast<StreamId>(i)));
  if (random_.chance(0.5)) fences.clear();  // every kernel ran inside an operator, whose end leaves a fence
  world_.pager().free_region(region.id, fences);
  live_bytes_ -= region.bytes;
  regions_.erase(serial);
  world_.settle();
}

void SimProgram::disturb(Deed deed) {
  Pager& pager = world_.pager();
  const uint64_t serial = random_region(random_);
  const PagerConfig& config = plan_.world.pager;
  if (deed == Deed::kShrink) {
    const uint64_t granules = config.device_bytes_max / config.granule_bytes;
    world_.set_device_capacity(random_.between(1, granules) * config.granule_bytes);
    return;
  }
  if (deed == Deed::kHostShrink) pager.set_capacity(Tier::kHost, random_.below(config.host_bytes_max + 1));
  if (deed == Deed::kReleaseFrames) pager.release_free_frames();
  if (deed == Deed::kEvictAll) pager.evict_all();
  if (serial != 0) {
    ModelRegion& region = regions_.at(serial);
    if (deed == Deed::kEvict) pager.evict(region.id);
    if (deed == Deed::kPrefetch) pager.prefetch(region.id);
    if (deed == Deed::kSeen) {
      region.seen = true;
      pager.mark_seen(region.id);
    }
  }
  world_.settle();
}

// Both directions: every page of the model is in the pager with its content, and the pager has no other live region.
void SimProgram::check_contents() const {
  const Pager& pager = const_cast<SimProgram*>(this)->world_.pager();
  size_t pending = 0;
  for (const Thread& thread : threads_) pending += thread.activity == Activity::kWaiting && thread.allocating;
  for (const auto& [serial, region] : regions_) {
    require(pager.memory().live(region.id), "a live region is gone");
    const auto pages = pager.memory().region(region.id).pages;
    require(pages.size() == region.pages.size(), "a region lost pages");
    for (size_t i = 0; i < pages.size(); ++i) {
      const Page& page = pager.memory().pages[pages[i]];
      require(page.has_content(), "the content of a page is lost");
      if (!region.seen) require(page.is_valid(Tier::kDevice), "memory that no operator has seen left the device");
      if (region.pages[i].sourced) {
        world_.check_source(page, region.pages[i].source);
        // A request that waits may have been granted the right to write, and its thread not know it yet.
        require(page.sourced || region.waiting > 0, "a page that nobody wrote has lost its source");
      }
      if (region.pages[i].version != 0) world_.check_copies(page, region.pages[i].version);
    }
  }
  require(pager.memory().live_regions().size() <= regions_.size() + pending, "the pager keeps regions that nobody has");
}

// Phase two: no faults, no new requests. Every waiting request must be answered within a bounded number of ticks.
void SimProgram::finish_all() {
  world_.stop_faults();
  world_.set_device_capacity(plan_.world.pager.device_bytes_max);
  world_.pager().set_capacity(Tier::kHost, plan_.world.pager.host_bytes_max);
  world_.settle();
  for (int tick = 0;; ++tick, ++step_) {
    bool idle = true;
    for (Thread& thread : threads_) {
      if (random_.chance(0.2)) act(thread, true);
      idle = idle && thread.activity == Activity::kIdle;
    }
    if (idle) break;
    require(tick < kTicksMax, "a request waits for ever");
    world_.advance();
  }
  run_until_quiet();
  check_contents();
  check_overflow();
  read_everything();
  run_until_quiet();
  check_contents();
  free_everything();
}

// What nobody holds has not stayed beyond the budget where it had somewhere to go.
void SimProgram::check_overflow() const {
  const Memory& memory = world_.pager().memory();
  for (const PageId id : memory.pages.ids()) {
    const Page& page = memory.pages[id];
    const Region& region = memory.region_of(id);
    const bool free = page.pins == 0 && region.seen && !region.held && !region.guessed && region.views == 0;
    require(!memory.overflows(page) || !free || !memory.host.can_take(page.bytes), "memory beyond the budget is kept");
  }
}

void SimProgram::run_until_quiet() {
  int still = 0;  // a few quiet ticks in a row: retries and growth come late
  for (int tick = 0; still < 150; ++tick, ++step_) {
    require(tick < kTicksMax, "the pager never comes to rest");
    world_.advance();
    still = world_.quiet() ? still + 1 : 0;
  }
}

void SimProgram::read_everything() {
  Thread& thread = threads_.front();
  for (const auto& [serial, region] : regions_) {
    thread.in_operator = true;
    thread.activity = Activity::kOpen;
    request_pages(thread, {{serial, 0, region.bytes - 1, false}});
    for (int tick = 0; thread.activity == Activity::kWaiting; ++tick, ++step_) {
      require(tick < kTicksMax, "a lone request waits for ever");
      world_.advance();
      act(thread, true);
    }
    if (thread.activity == Activity::kOpen) end_operator(thread);
  }
}

void SimProgram::free_everything() {
  while (!regions_.empty()) free_region(regions_.begin()->first);
  world_.set_device_capacity(0);
  run_until_quiet();
  const Pager& pager = world_.pager();
  require(pager.memory().used(Tier::kDevice) == 0 && pager.memory().device_held_bytes() == 0,
          "device memory is left over");
  require(pager.memory().used(Tier::kHost) == 0 && pager.memory().used(Tier::kNvme) == 0, "lower memory is left over");
  require(world_.created_bytes() == 0, "frames were not released");
  const Stats& stats = pager.memory().stats;
  require(stats.live_bytes.current == 0 && stats.pinned_bytes.current == 0, "gauges do not return to 0");
}

Plan draw_plan(uint64_t seed) {
  Random random(seed ^ 0xabcdef);
  Plan plan;
  PagerConfig& pager = plan.world.pager;
  pager.granule_bytes = 64;
  pager.frame_bytes_max = 64u << random.below(4);
  pager.span_bytes_min = SimWorld::kUnitBytes;
  pager.range_bytes = 1 << 16;
  pager.trace_uses_max = 1024;
  pager.policy = random.chance(0.25) ? PolicyKind::kClock : PolicyKind::kAuto;
  pager.prefetch = random.chance(0.8);
  plan.generous = random.chance(0.3);
  plan.threads = static_cast<int>(random.between(1, 4));
  const uint64_t granules =
      plan.generous ? random.between(4, 8) * static_cast<uint64_t>(plan.threads) : random.between(2, 16);
  pager.device_bytes_max = granules * 64;
  plan.live_bytes_max = pager.device_bytes_max * random.between(1, 4);
  pager.host_bytes_max = plan.live_bytes_max * random.below(5) / 4 / 64 * 64;
  pager.nvme_bytes_max = random.chance(0.3) ? 0 : plan.live_bytes_max * random.between(1, 5) / 4 / 64 * 64;
  plan.held_bytes_max = pager.device_bytes_max / static_cast<uint64_t>(plan.threads);
  plan.region_bytes_max = plan.generous ? std::min<uint64_t>(plan.held_bytes_max, 64 * 6) : 64 * random.between(1, 8);
  if (plan.generous && random.chance(0.5)) {
    pager.nvme_bytes_max = plan.live_bytes_max + 64;
  } else if (plan.generous) {
    pager.host_bytes_max = plan.live_bytes_max + 64;
  }
  plan.world.streams = random.between(1, 3);
  plan.world.latency_max = random.between(0, 12);
  plan.world.kernel_max = random.between(0, 30);
  plan.world.growth_max = random.between(0, 60);
  plan.steps = static_cast<int>(random.between(100, 400));
  plan.periodic = random.chance(0.5);
  plan.write_share = random.chance(0.2) ? 0.05 : 0.5;
  plan.cancel_chance = random.chance(0.5) ? 0 : 0.05;
  if (!plan.generous && random.chance(0.6)) {
    const auto maybe = [&random](double most) { return random.chance(0.5) ? most : 0; };
    plan.world.faults = {maybe(0.2), maybe(0.3), maybe(0.2), maybe(0.1), maybe(0.2), maybe(0.3)};
  }
  const uint32_t usual[] = {60, 25, 10, 10, 4, 1, 4, 2, 2, 2, 1};
  for (size_t i = 0; i < plan.weights.size(); ++i) {
    plan.weights[i] = i >= 2 && random.chance(0.3) ? 0 : usual[i];
  }
  if (plan.generous) {
    for (const Deed off : {Deed::kShrink, Deed::kHostShrink, Deed::kPin}) plan.weights[static_cast<size_t>(off)] = 0;
  }
  plan.source_chance = random.chance(0.5) ? 0 : random.chance(0.5) ? 0.3 : 1;
  pager.overflow = random.chance(0.4);
  plan.read_chance = random.chance(0.5) ? 0 : 0.3;
  pager.compress = random.chance(0.5);
  return plan;
}

}  // namespace tierpage::sim
