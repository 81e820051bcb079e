// The simulated machine: memories, streams and the executor of actions.
#include "sim_world.h"

#include <algorithm>
#include <utility>

namespace tierpage::sim {

SimWorld::SimWorld(const WorldConfig& config, uint64_t seed)
    : config_(config), random_(seed ^ 0x5eed), pager_(config.pager), device_capacity_(config.pager.device_bytes_max),
      host_(config.pager.host_bytes_max / kUnitBytes), nvme_(config.pager.nvme_bytes_max / kUnitBytes),
      queued_(config.streams), launched_(config.streams, 0), done_(config.streams, 0) {
  host_done_ = config.pager.host_bytes_max == 0;
  host_growth_at_ = random_.below(config_.growth_max + 1);
  kernels_.emplace_back().finished = true;  // number 0: no kernel
}

void SimWorld::settle() {
  pager_.check_invariants();
  if (pager_.wants_planning() && random_.chance(0.7)) plan();
  take_actions();
}

void SimWorld::plan() {
  pager_.plan();
  pager_.check_invariants();
}

void SimWorld::take_actions() {
  std::vector<Action> actions;
  pager_.take_actions(actions);
  for (Action& action : actions) {
    decisions_.add(action);
    accept(action);
  }
}

void SimWorld::accept(Action& action) {
  Job job;
  job.ready = soon();
  job.capacity = device_capacity_;
  switch (action.kind) {
    case ActionKind::kWatchFence: watches_.push_back(action.fence); return;
    case ActionKind::kRecordFence: records_.push_back({action.fence, soon(), false}); return;
    case ActionKind::kUnmap:
      require(!busy_.contains(action.device_offset), "unmap ordered under an unfinished kernel");
      require(!holds_.contains(action.device_offset), "unmap ordered under an open operator");
      [[fallthrough]];
    case ActionKind::kReleaseFrame:
    case ActionKind::kMap:
    case ActionKind::kFetch:
      job.action = std::move(action);
      device_lane_.push_back(std::move(job));
      return;
    case ActionKind::kWriteBack:
      require(!busy_.contains(action.device_offset), "write-back ordered under an unfinished kernel");
      require(!holds_.contains(action.device_offset), "write-back ordered under an open operator");
      [[fallthrough]];
    case ActionKind::kSpill:
    case ActionKind::kStage:
      job.action = std::move(action);
      copies_.push_back(std::move(job));
      return;
  }
}

void SimWorld::advance() {
  ++now_;
  run_kernels();
  run_device_lane();
  run_copies();
  grow_host();
  deliver();
  end_readings();
  if (now_ % 64 == 0) {
    pager_.tick();
    settle();
  }
  if (pager_.wants_planning()) plan();
  take_actions();
}

uint64_t SimWorld::launch(StreamId stream, std::vector<KernelAccess> accesses, const std::vector<uint64_t>& after) {
  const uint64_t number = kernels_.size();
  for (const KernelAccess& access : accesses) ++busy_[access.offset];
  Kernel kernel;
  kernel.stream = stream;
  kernel.ready = now_ + random_.below(config_.kernel_max + 1);
  kernel.accesses = std::move(accesses);
  kernel.after = after;
  kernels_.push_back(std::move(kernel));
  queued_[stream].push_back(number);
  ++launched_[stream];
  return number;
}

void SimWorld::run_kernels() {
  for (auto& queue : queued_) {
    while (!queue.empty()) {
      Kernel& kernel = kernels_[queue.front()];
      const bool ordered = std::all_of(kernel.after.begin(), kernel.after.end(),
                                       [this](uint64_t earlier) { return kernels_[earlier].finished; });
      if (kernel.ready > now_ || !ordered) break;
      finish_kernel(kernel);
      queue.pop_front();
    }
  }
}

void SimWorld::finish_kernel(Kernel& kernel) {
  for (const KernelAccess& access : kernel.accesses) {
    require(mapped_.contains(access.offset), "a kernel met an unmapped page");
    Frame& memory = frame(mapped_.at(access.offset));
    require(memory.bytes == access.bytes, "a kernel met a frame of another size");
    if (!access.write && access.from_source) {
      require(memory.units == units_of(access.source, access.bytes), "a kernel read something else than the source");
    }
    if (!access.write && access.version != 0) {
      for (size_t i = 0; i < memory.units.size(); ++i) {
        require(memory.units[i] == unit_of(access.version, i), "a kernel read a lost or stale write");
      }
    }
    if (--busy_[access.offset] == 0) busy_.erase(access.offset);
  }
  for (const KernelAccess& access : kernel.accesses) {
    if (!access.write) continue;
    Frame& memory = frame(mapped_.at(access.offset));
    for (size_t i = 0; i < memory.units.size(); ++i) memory.units[i] = unit_of(access.version, i);
  }
  kernel.finished = true;
  kernel.accesses.clear();
  kernel.after.clear();
  ++done_[kernel.stream];
}

SimWorld::Frame& SimWorld::frame(FrameId id) {
  if (frames_.size() <= id.value) frames_.resize(id.value + 1);
  return frames_[id.value];
}

const SimWorld::Frame& SimWorld::frame_at(uint64_t offset) const {
  require(mapped_.contains(offset), "the page is not mapped");
  return frames_[mapped_.at(offset).value];
}

void SimWorld::complete(TransferId transfer, TransferResult result) {
  completions_.push_back({soon(), transfer, std::move(result)});
}

// Address space calls, one after the other.
void SimWorld::run_device_lane() {
  while (!device_lane_.empty() && device_lane_.front().ready <= now_) {
    Job job = std::move(device_lane_.front());
    device_lane_.pop_front();
    const Action& action = job.action;
    Frame& memory = frame(action.frame);
    if (action.kind == ActionKind::kReleaseFrame) {
      require(memory.created && memory.mapped_at == kNowhere, "released a frame that is mapped or was never made");
      if (!memory.overflow) created_bytes_ -= memory.bytes;
      memory = Frame{};
    } else if (action.kind == ActionKind::kUnmap) {
      require(memory.mapped_at == action.device_offset, "unmapped a frame that is not there");
      require(!busy_.contains(action.device_offset), "unmapped under an unfinished kernel");
      memory.mapped_at = kNowhere;
      mapped_.erase(action.device_offset);
      complete(action.transfer, {});
    } else if (perform_map(job)) {
      if (action.kind == ActionKind::kMap) {
        complete(action.transfer, {});
      } else {
        job.ready = soon();
        copies_.push_back(std::move(job));
      }
    }
  }
}

bool SimWorld::perform_map(Job& job) {
  const Action& action = job.action;
  Frame& memory = frame(action.frame);
  require(memory.created != action.create_frame, "created twice, or mapped without memory");
  TransferResult result;
  result.mapped = false;
  if (action.create_frame) {
    require(!action.overflow || config_.pager.overflow, "memory beyond the budget, which nobody allowed");
    require(action.overflow || created_bytes_ + action.bytes <= job.capacity, "more device memory than the budget");
    if (random_.chance(config_.faults.create)) {
      result.frame_created = false;
      result.status = Status::error(StatusCode::kOutOfMemory, "simulated: no device memory");
      complete(action.transfer, result);
      return false;
    }
    memory.created = true;
    memory.bytes = action.bytes;
    memory.overflow = action.overflow;
    if (!action.overflow) created_bytes_ += action.bytes;
  }
  require(memory.bytes == action.bytes, "a frame of another size");
  require(memory.mapped_at == kNowhere && !mapped_.contains(action.device_offset), "mapped twice");
  if (random_.chance(config_.faults.map)) {
    const StatusCode code = random_.chance(0.5) ? StatusCode::kOutOfMemory : StatusCode::kUnavailable;
    result.status = Status::error(code, "simulated: map failed");
    complete(action.transfer, result);
    return false;
  }
  memory.units.assign(action.bytes / kUnitBytes, --garbage_);
  memory.mapped_at = action.device_offset;
  mapped_[action.device_offset] = action.frame;
  return true;
}

SimWorld::Units SimWorld::read_spans(const Units& tier, const SpanList& spans) const {
  Units units;
  for (const Span& span : spans) {
    const auto first = tier.begin() + static_cast<std::ptrdiff_t>(span.offset / kUnitBytes);
    units.insert(units.end(), first, first + static_cast<std::ptrdiff_t>(span.bytes / kUnitBytes));
  }
  return units;
}

// Writes the first `count` units only: a write that failed half way.
void SimWorld::write_spans(Units& tier, const SpanList& spans, const Units& units, size_t count) {
  size_t index = 0;
  for (const Span& span : spans) {
    for (uint64_t at = span.offset; at < span.offset + span.bytes && index < count; at += kUnitBytes) {
      tier[at / kUnitBytes] = units[index++];
    }
  }
}

SimWorld::Units SimWorld::read_stored(const Units& tier, const SpanList& spans, uint64_t stored_bytes) const {
  Units units = read_spans(tier, spans);
  require(units.size() >= stored_bytes / kUnitBytes, "a copy is longer than its spans");
  units.resize(stored_bytes / kUnitBytes);
  return units;
}

// At most fifteen sixteenths, at least a unit.
SimWorld::Units SimWorld::encode(const Units& content) {
  Units code(random_.between(1, std::max<uint64_t>(content.size() * 15 / 16, 1)));
  codes_[next_code_] = content;
  for (uint64_t& unit : code) unit = next_code_++;
  ++next_code_;  // no two codes stand side by side
  return code;
}

SimWorld::Units SimWorld::decode(const Units& stored, uint64_t page_bytes) const {
  if (stored.size() * kUnitBytes == page_bytes) return stored;
  const auto found = codes_.find(stored.front());
  require(found != codes_.end() && found->second.size() * kUnitBytes == page_bytes,
          "what is stored is no code of the page");
  for (size_t i = 0; i < stored.size(); ++i) require(stored[i] == found->first + i, "a code is damaged");
  return found->second;
}

SimWorld::Units SimWorld::read_source(const Job& job) const {
  const Action& action = job.action;
  if (action.sourced) {
    require(action.nvme.empty(), "a sourced page has spans");
    const bool reads = action.kind == ActionKind::kStage || action.kind == ActionKind::kFetch;
    if (reads && (action.kind == ActionKind::kStage || action.lower == Tier::kNvme))
      return units_of(action.source, action.bytes);
  }
  switch (action.kind) {
    case ActionKind::kWriteBack: return frame_at(action.device_offset).units;
    case ActionKind::kSpill: return read_stored(host_, action.host, action.stored_bytes);
    case ActionKind::kStage: return read_stored(nvme_, action.nvme, action.stored_bytes);
    default:
      return action.lower == Tier::kHost ? read_stored(host_, action.host, action.stored_bytes)
                                         : read_stored(nvme_, action.nvme, action.stored_bytes);
  }
}

void SimWorld::run_copies() {
  for (size_t i = 0; i < copies_.size();) {
    Job& job = copies_[i];
    if (job.ready > now_) {
      ++i;
    } else if (!job.started) {
      job.started = true;
      job.source = read_source(job);
      require(job.source.size() * kUnitBytes == job.action.stored_bytes, "a copy of another size than its page");
      job.ready = soon();
      ++i;
    } else {
      finish_copy(job);
      std::swap(job, copies_.back());
      copies_.pop_back();
    }
  }
}

void SimWorld::finish_copy(Job& job) {
  const Action& action = job.action;
  require(job.source == read_source(job), "the source of a copy was written while it was copied");
  const bool reads = action.kind == ActionKind::kFetch || action.kind == ActionKind::kStage;
  const bool fails = random_.chance(reads ? config_.faults.read : config_.faults.write);
  TransferResult result;
  const bool codes = action.code && job.source.size() > 1 && random_.chance(0.7);
  Units moved = codes ? encode(job.source) : job.source;
  if (action.kind == ActionKind::kFetch) moved = decode(moved, action.bytes);
  const size_t count = fails ? moved.size() / 2 : moved.size();
  result.stored_bytes = codes ? moved.size() * kUnitBytes : 0;
  result.incompressible = action.code && !codes;
  if (action.kind == ActionKind::kFetch) {
    Frame& memory = frame(action.frame);
    require(memory.mapped_at == action.device_offset, "fetched into a frame that is not there");
    std::copy_n(moved.begin(), count, memory.units.begin());
  } else if (action.kind == ActionKind::kStage ||
             (action.kind == ActionKind::kWriteBack && action.lower == Tier::kHost)) {
    write_spans(host_, action.host, moved, count);
  } else {
    write_spans(nvme_, action.nvme, moved, count);
  }
  if (fails) result.status = Status::error(StatusCode::kStorageError, "simulated: storage failed", 5);
  complete(action.transfer, result);
}

void SimWorld::deliver() {
  for (size_t i = 0; i < completions_.size();) {
    if (completions_[i].ready > now_) {
      ++i;
      continue;
    }
    const Completion completion = completions_[i];
    completions_[i] = completions_.back();
    completions_.pop_back();
    pager_.transfer_done(completion.transfer, completion.result);
    settle();
  }
  for (size_t i = 0; i < watches_.size();) {
    const Fence fence = watches_[i];
    if (done_[fence.stream] < fence.sequence || random_.chance(0.3)) {
      ++i;
      continue;
    }
    watches_[i] = watches_.back();
    watches_.pop_back();
    pager_.fence_done(fence);
    settle();
  }
  deliver_records();
}

// A fence stands where the stream was when it was recorded; the pager hears of it later.
void SimWorld::deliver_records() {
  for (size_t i = 0; i < records_.size();) {
    Record& record = records_[i];
    if (record.ready > now_) {
      ++i;
      continue;
    }
    const bool refused = random_.chance(config_.faults.record);
    if (!record.recorded && !refused) {
      record = {last_fence(record.fence.stream), soon(), true};
      continue;
    }
    const Record ended = record;
    records_[i] = records_.back();
    records_.pop_back();
    if (ended.recorded) {
      pager_.fence_recorded(ended.fence.stream, ended.fence);
    } else {
      pager_.fence_refused(ended.fence.stream);
    }
    settle();
  }
}

void SimWorld::read_outside(PageId page) {
  if (!pager_.begin_read(page)) return;
  const SpanList spans = pager_.memory().pages[page].host;
  readings_.push_back({soon(), page, spans, read_spans(host_, spans)});
  settle();
}

void SimWorld::end_readings() {
  for (size_t i = 0; i < readings_.size();) {
    if (readings_[i].ready > now_) {
      ++i;
      continue;
    }
    const Reading reading = readings_[i];
    readings_[i] = readings_.back();
    readings_.pop_back();
    require(read_spans(host_, reading.spans) == reading.units, "a copy in RAM changed while it was read");
    pager_.read_done(reading.page);
    settle();
  }
}

void SimWorld::grow_host() {
  if (host_done_ || now_ < host_growth_at_) return;
  host_growth_at_ = now_ + 1 + random_.below(config_.growth_max + 1);
  const uint64_t limit = config_.pager.host_bytes_max;
  const bool fails = random_.chance(config_.faults.growth);
  if (!fails) host_space_ = std::min(limit, host_space_ + random_.between(1, limit / kUnitBytes) * kUnitBytes);
  host_done_ = fails || host_space_ == limit;
  pager_.host_space_ready(host_space_, fails);
  settle();
}

void SimWorld::set_device_capacity(uint64_t bytes) {
  device_capacity_ = bytes;
  pager_.set_capacity(Tier::kDevice, bytes);
  settle();
}

bool SimWorld::quiet() const {
  const bool kernels_done =
      std::all_of(queued_.begin(), queued_.end(), [](const auto& queue) { return queue.empty(); });
  return kernels_done && device_lane_.empty() && copies_.empty() && completions_.empty() && watches_.empty() &&
         records_.empty() && readings_.empty();
}

void SimWorld::require_mapped(const Page& page) const {
  require(page.mapped && page.is_valid(Tier::kDevice), "granted a page that is not resident");
  require(mapped_.contains(page.offset) && mapped_.at(page.offset) == page.frame, "granted a page that is not mapped");
}

void SimWorld::check_copies(const Page& page, uint64_t version) const {
  Units expected(page.bytes / kUnitBytes);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = unit_of(version, i);
  require(!page.sourced, "a page that was written still has a source");
  compare_copies(page, expected);
}

void SimWorld::check_source(const Page& page, const Source& part) const {
  compare_copies(page, units_of(part, page.bytes));
}

void SimWorld::compare_copies(const Page& page, const Units& expected) const {
  require(page.has_content(), "the content of a page is lost");
  const auto below = [&](const Units& tier, const SpanList& spans, uint64_t stored) {
    return decode(read_stored(tier, spans, stored), page.bytes);
  };
  if (page.is_valid(Tier::kHost)) {
    require(below(host_, page.host, page.host_bytes) == expected, "the copy in HOST is stale");
  }
  if (page.is_valid(Tier::kNvme) && !page.sourced) {
    require(below(nvme_, page.nvme, page.nvme_bytes) == expected, "the copy in NVME is stale");
  }
  if (page.is_valid(Tier::kDevice) && !busy_.contains(page.offset)) {
    require(frame_at(page.offset).units == expected, "the copy in DEVICE is stale");
  }
}

Source SimWorld::make_source(uint64_t bytes) {
  const Source source{source_end_, bytes};
  source_end_ += bytes + random_.below(100);
  return source;
}

// The first byte's place tells what a unit holds, and whether it is whole; zero beyond the source.
SimWorld::Units SimWorld::units_of(const Source& part, uint64_t bytes) {
  Units units(bytes / kUnitBytes, 0);
  for (size_t i = 0; i < units.size() && i * kUnitBytes < part.bytes; ++i) {
    const uint64_t whole = std::min(kUnitBytes, part.bytes - i * kUnitBytes);
    units[i] = (uint64_t{1} << 62) + (part.offset + i * kUnitBytes) * 64 + whole;
  }
  return units;
}

}  // namespace tierpage::sim
