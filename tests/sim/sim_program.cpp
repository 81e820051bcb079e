// The threads of a random program.
#include "sim_program.h"

#include <algorithm>
#include <string>

namespace tierpage::sim {

SimProgram::SimProgram(const Plan& plan, uint64_t seed) : plan_(plan), random_(seed), world_(plan.world, seed) {
  for (int i = 0; i < plan.threads; ++i) {
    Thread thread;
    thread.slot = world_.pager().add_slot();
    thread.stream = static_cast<StreamId>(static_cast<uint64_t>(i) % plan.world.streams);
    threads_.push_back(thread);
  }
}

Outcomes SimProgram::run() {
  for (; step_ < plan_.steps; ++step_) {
    for (uint64_t deeds = random_.below(4); deeds > 0; --deeds) act(threads_[random_.below(threads_.size())], false);
    if (plan_.read_chance > 0 && random_.chance(plan_.read_chance)) {
      if (const uint64_t serial = random_region(random_); serial != 0) {
        const auto pages = world_.pager().memory().region(regions_.at(serial).id).pages;
        world_.read_outside(pages[random_.below(pages.size())]);
      }
    }
    world_.advance();
    if (step_ % 16 == 0) check_contents();
  }
  finish_all();
  const Stats& stats = world_.pager().stats();
  outcomes_.fetches = stats.fetch_bytes_host_to_device + stats.fetch_bytes_nvme_to_device;
  outcomes_.source_bytes = stats.source_bytes_read;
  outcomes_.write_backs = stats.write_back_bytes_device_to_host + stats.write_back_bytes_device_to_nvme;
  outcomes_.decisions = world_.decisions();
  return outcomes_;
}

void SimProgram::act(Thread& thread, bool finishing) {
  switch (thread.activity) {
    case Activity::kIdle:
      if (!finishing) act_idle(thread);
      break;
    case Activity::kOpen: act_open(thread, finishing); break;
    case Activity::kWaiting:
      if (!finishing && random_.chance(plan_.cancel_chance)) {
        world_.pager().cancel(thread.slot);
        world_.settle();
      }
      settle_request(thread, world_.pager().outcome(thread.slot));
      break;
  }
}

void SimProgram::act_idle(Thread& thread) {
  uint64_t total = 0;
  for (const uint32_t weight : plan_.weights) total += weight;
  uint64_t drawn = random_.below(total);
  size_t index = 0;
  while (drawn >= plan_.weights[index]) drawn -= plan_.weights[index++];
  const Deed deed = static_cast<Deed>(index);
  switch (deed) {
    case Deed::kOperator: open_operator(thread); break;
    case Deed::kAllocate: request_memory(thread, false); break;
    case Deed::kFree: free_random(); break;
    case Deed::kPin:
      thread.permanent = true;
      world_.pager().set_permanent(thread.slot, true);
      open_operator(thread);
      break;
    default: disturb(deed); break;
  }
}

void SimProgram::act_open(Thread& thread, bool finishing) {
  const uint64_t choice = finishing ? 9 : random_.below(10);
  if (thread.permanent && !finishing) {
    if (random_.chance(0.03)) end_operator(thread);
  } else if (choice < 2) {
    const std::vector<ModelUse> uses = draw_uses(thread, random_);
    if (!uses.empty()) request_pages(thread, uses);
  } else if (choice < 4) {
    request_memory(thread, true);
  } else if (choice < 5) {
    free_random();
  } else {
    end_operator(thread);
  }
}

void SimProgram::open_operator(Thread& thread) {
  Random fixed(thread.turn % 5 * 77 + thread.slot.value);
  ++thread.turn;
  const std::vector<ModelUse> uses = draw_uses(thread, plan_.periodic ? fixed : random_);
  thread.in_operator = true;
  thread.activity = Activity::kOpen;
  request_pages(thread, uses);
}

uint64_t SimProgram::random_region(Random& random) {
  if (regions_.empty()) return 0;
  auto found = regions_.begin();
  std::advance(found, static_cast<std::ptrdiff_t>(random.below(regions_.size())));
  return found->first;
}

uint64_t SimProgram::touched_bytes(const ModelUse& use) const {
  const ModelRegion& region = regions_.at(use.serial);
  uint64_t bytes = 0;
  for (const ModelPage& page : region.pages) {
    const uint64_t first = page.offset - region.pages.front().offset;
    if (first <= use.last && first + page.bytes > use.first) bytes += page.bytes;
  }
  return bytes;
}

std::vector<SimProgram::ModelUse> SimProgram::draw_uses(Thread& thread, Random& random) {
  std::vector<ModelUse> uses;
  uint64_t bytes = thread.held_bytes;
  for (uint64_t count = random.between(1, 3); count > 0; --count) {
    const uint64_t serial = random_region(random);
    if (serial == 0) break;
    const ModelRegion& region = regions_.at(serial);
    ModelUse use{serial, 0, region.bytes - 1, random.chance(plan_.write_share)};
    if (random.chance(0.3)) {
      use.first = random.below(region.bytes);
      use.last = random.between(use.first, region.bytes - 1);
    }
    if (plan_.generous && bytes + touched_bytes(use) > plan_.held_bytes_max) continue;
    bytes += touched_bytes(use);
    uses.push_back(use);
  }
  return uses;
}

void SimProgram::request_pages(Thread& thread, const std::vector<ModelUse>& uses) {
  std::vector<Use> wanted;
  for (const ModelUse& use : uses) {
    ModelRegion& region = regions_.at(use.serial);
    wanted.push_back({region.id, use.first, use.last, use.write ? AccessMode::kWrite : AccessMode::kRead});
    ++region.waiting;
  }
  thread.uses = uses;
  thread.allocating = false;
  const uint64_t hash = thread.turn % 5;
  const Outcome outcome = world_.pager().begin_op(thread.slot, hash, "an operator", wanted);
  world_.settle();
  settle_request(thread, outcome);
}

void SimProgram::request_memory(Thread& thread, bool inside) {
  const uint64_t bytes = random_.between(1, plan_.region_bytes_max);
  const uint64_t rounded = round_up(bytes, plan_.world.pager.granule_bytes);
  if (live_bytes_ + rounded > plan_.live_bytes_max) return;
  if (plan_.generous && thread.held_bytes + rounded > plan_.held_bytes_max) return;
  live_bytes_ += rounded;
  thread.allocating = true;
  thread.inside = inside;
  thread.asked_bytes = bytes;
  thread.uses.clear();
  thread.source = {};
  if (!inside && plan_.source_chance > 0 && random_.chance(plan_.source_chance))
    thread.source = world_.make_source(bytes);
  const Outcome outcome = world_.pager().allocate(thread.slot, {bytes, thread.stream, 0, inside, thread.source});
  world_.settle();
  settle_request(thread, outcome);
}

void SimProgram::settle_request(Thread& thread, Outcome outcome) {
  if (outcome == Outcome::kWait) {
    if (thread.activity != Activity::kWaiting) ++outcomes_.waits;
    thread.activity = Activity::kWaiting;
    return;
  }
  thread.activity = thread.in_operator ? Activity::kOpen : Activity::kIdle;
  for (const ModelUse& use : thread.uses) --regions_.at(use.serial).waiting;
  if (outcome == Outcome::kFailed) {
    failed(thread);
  } else if (thread.allocating) {
    granted_memory(thread);
  } else {
    granted(thread);
  }
}

void SimProgram::granted(Thread& thread) {
  ++outcomes_.grants;
  for (const ModelUse& use : thread.uses) {
    ModelRegion& region = regions_.at(use.serial);
    const uint64_t base = region.pages.front().offset;
    for (const PageId id : world_.pager().memory().region(region.id).pages) {
      const Page& page = world_.pager().memory().pages[id];
      if (page.offset - base > use.last || page.offset - base + page.bytes <= use.first) continue;
      world_.require_mapped(page);
      require(page.pins > 0, "granted a page without a pin");
      thread.holds.push_back(page.offset);
      thread.held_bytes += page.bytes;
      world_.hold(page.offset);
    }
    // What an operator has seen is a tensor. Some programs see late; an unseen region must stay resident.
    if (random_.chance(0.5)) {
      region.seen = true;
      world_.pager().mark_seen(region.id);
    }
  }
  run_kernel(thread, thread.uses);
}

void SimProgram::granted_memory(Thread& thread) {
  ++outcomes_.grants;
  ModelRegion region;
  region.id = world_.pager().allocated(thread.slot);
  require(world_.pager().memory().live(region.id), "the memory given out is not live");
  require(world_.pager().memory().region(region.id).bytes_asked == thread.asked_bytes,
          "the memory given out has another size");
  region.bytes = round_up(thread.asked_bytes, plan_.world.pager.granule_bytes);
  // Memory is good in the order of the stream that it was allocated for; others must wait for that stream.
  const uint64_t ordered_after = world_.last_kernel(thread.stream);
  uint64_t bytes = 0;
  for (const PageId id : world_.pager().memory().region(region.id).pages) {
    const Page& page = world_.pager().memory().pages[id];
    ModelPage model{page.offset, page.bytes, 0, ordered_after, {}, thread.source.bytes > 0, {}};
    if (model.sourced) {
      require(!page.frame.valid() && page.sourced, "memory with a source was given a frame");
      if (bytes < thread.source.bytes)
        model.source = {thread.source.offset + bytes, std::min(page.bytes, thread.source.bytes - bytes)};
    } else {
      world_.require_mapped(page);
    }
    region.pages.push_back(model);
    bytes += page.bytes;
    if (!thread.inside) continue;
    thread.holds.push_back(page.offset);
    thread.held_bytes += page.bytes;
    world_.hold(page.offset);
  }
  require(bytes == region.bytes, "the memory given out is not whole");
  for (const auto& [serial, other] : regions_) require(other.id != region.id, "memory given out twice");
  if (plan_.generous || thread.source.bytes > 0 || random_.chance(0.3)) {
    region.seen = true;
    world_.pager().mark_seen(region.id);
  }
  const uint64_t serial = next_serial_++;
  regions_.emplace(serial, std::move(region));
  if (thread.inside) run_kernel(thread, {{serial, 0, thread.asked_bytes - 1, true}});
}

void SimProgram::failed(Thread& thread) {
  if (thread.allocating) live_bytes_ -= round_up(thread.asked_bytes, plan_.world.pager.granule_bytes);
  const Status& status = world_.pager().failure(thread.slot);
  ++outcomes_.failures;
  if (status.code == StatusCode::kInterrupted) return;
  if (status.code == StatusCode::kOutOfMemory) ++outcomes_.out_of_memory;
  if (status.code == StatusCode::kStorageError) ++outcomes_.storage;
  require(!status.message.empty(), "a failure without a message");
  if (plan_.generous) throw SimFailure("failed where there is room for all: " + status.message);
}

void SimProgram::end_operator(Thread& thread) {
  for (const uint64_t offset : thread.holds) world_.release(offset);
  thread.holds.clear();
  thread.held_bytes = 0;
  const bool owes = !world_.pager().engaged() && random_.chance(0.8);
  world_.pager().end_op(thread.slot, owes ? Fence{thread.stream, Fence::kOwed} : world_.last_fence(thread.stream));
  if (thread.permanent) world_.pager().set_permanent(thread.slot, false);
  thread.permanent = false;
  thread.in_operator = false;
  thread.activity = Activity::kIdle;
  world_.settle();
}

// The kernel of an operator: ordered after earlier kernels of other streams that touch the same pages of the same
// life of a region, as a correct program orders them. Between two lives the pager alone must keep them apart.
void SimProgram::run_kernel(Thread& thread, const std::vector<ModelUse>& uses) {
  struct Touch {
    ModelPage* page;
    bool write;
  };
  std::map<uint64_t, Touch> touches;
  for (const ModelUse& use : uses) {
    ModelRegion& region = regions_.at(use.serial);
    world_.pager().note_stream_use(region.id, {thread.stream, 0});
    const uint64_t base = region.pages.front().offset;
    for (ModelPage& page : region.pages) {
      if (page.offset - base > use.last || page.offset - base + page.bytes <= use.first) continue;
      Touch& touch = touches.try_emplace(page.offset, Touch{&page, false}).first->second;
      touch.write = touch.write || use.write;
    }
  }
  if (touches.empty()) return;
  std::vector<KernelAccess> accesses;
  std::vector<uint64_t> after;
  for (auto& [offset, touch] : touches) {
    ModelPage& page = *touch.page;
    accesses.push_back({offset, page.bytes, false, page.version, page.source, page.sourced});
    after.push_back(page.last_writer);
    if (!touch.write) continue;
    after.insert(after.end(), page.readers.begin(), page.readers.end());
    page.version = next_version_++;
    page.sourced = false;
    accesses.push_back({offset, page.bytes, true, page.version});
  }
  const uint64_t kernel = world_.launch(thread.stream, std::move(accesses), after);
  for (auto& [offset, touch] : touches) {
    if (touch.write) {
      touch.page->last_writer = kernel;
      touch.page->readers.clear();
    } else {
      touch.page->readers.push_back(kernel);
    }
  }
}

}  // namespace tierpage::sim
