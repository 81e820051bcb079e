// Files that regions have as their source: opening, handing to allocations, letting go.
#include <algorithm>
#include <cstring>

#include "engine/runtime.h"

namespace tierpage {

// Reads pass through the staging ring, which there is not yet without an NVMe tier: it is taken out of the RAM budget.
Status Runtime::open_sources() {
  bool has_ring;
  {
    std::lock_guard lock(mutex_);
    if (ended_locked()) return end_locked();
    if (closed_) return Status::error(StatusCode::kUnavailable, "paging is disabled: nothing can be backed by a file");
    if (sources_) return Status::success();
    has_ring = ring_ != nullptr;
    if (!has_ring) {
      if (Status status = take_ring_from_host_budget(); !status.ok()) return status;
      pager_config_.host_bytes_max += ring_bytes_;  // until it is there
    }
  }
  std::unique_ptr<StagingRing> ring;
  if (!has_ring) {
    if (Status status = open_ring(&ring); !status.ok()) return status;
  }
  if (options_.staging_slot_bytes < 2 * SourceFiles::kAlignment) {
    return Status::error(StatusCode::kInvalidArgument,
                         "staging_slot_bytes is " + std::to_string(options_.staging_slot_bytes) +
                             ": files need slots of at least 8192 bytes, to read from places that are not aligned");
  }
  auto sources = std::make_shared<SourceFiles>(SourceFilesOptions{options_.io_workers, options_.direct_io});
  if (Status status = sources->start(); !status.ok()) return status;
  sources->set_wake([](void* self) { static_cast<Runtime*>(self)->wake(); }, this);
  std::lock_guard lock(mutex_);
  sources_ = std::move(sources);
  if (has_ring) return Status::success();
  ring_ = std::move(ring);
  pager_config_.host_bytes_max -= ring_bytes_;
  const Status status = core_locked([&] {
    const uint64_t host = pager_->capacity(Tier::kHost);
    pager_->set_capacity(Tier::kHost, host > ring_bytes_ ? host - ring_bytes_ : 0);
    pager_->plan();
  });
  after_core_locked();
  return status;
}

Status Runtime::add_source(int descriptor, const std::string& name, uint64_t* place) {
  if (forked()) return Status::error(StatusCode::kUnavailable, "a forked child cannot page; start it with \"spawn\"");
  std::lock_guard closing(close_mutex_);  // one opens, and nobody closes meanwhile
  Status status = open_sources();
  // Without mutex_: opening a file may take long. close_mutex_ keeps sources_ where it is.
  if (status.ok()) status = sources_->add(descriptor, name, place);
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  source_uses_[*place] = {};
  return status;
}

void Runtime::let_source_go(uint64_t place) {
  std::lock_guard lock(mutex_);
  const auto use = source_uses_.find(place);
  if (use == source_uses_.end()) return;
  use->second.held = false;
  if (use->second.regions == 0) wake_locked();
}

void Runtime::count_source_locked(RegionId region, const Source& source) {
  auto use = source_uses_.upper_bound(source.offset);
  TP_ASSERT(use != source_uses_.begin());
  --use;
  ++use->second.regions;
  source_of_region_[region.value] = use->first;
}

void Runtime::uncount_source_locked(RegionId region) {
  const auto known = source_of_region_.find(region.value);
  if (known == source_of_region_.end()) return;
  SourceUse& use = source_uses_.at(known->second);
  source_of_region_.erase(known);
  if (--use.regions == 0 && !use.held) wake_locked();
}

// Files to be closed, without the lock. Only while nothing is under way: a region that was freed may still have been
// arriving.
std::vector<uint64_t> Runtime::take_unused_sources_locked() {
  std::vector<uint64_t> unused;
  std::erase_if(source_uses_, [&](const auto& entry) {
    if (entry.second.held || entry.second.regions > 0) return false;
    unused.push_back(entry.first);
    return true;
  });
  return unused;
}

Status Runtime::read_source(uint64_t offset, uint64_t bytes, std::byte* buffer) {
  std::shared_ptr<SourceFiles> sources;
  {
    std::lock_guard lock(mutex_);
    if (ended_locked()) return end_locked();
    sources = sources_;
  }
  if (!sources) return Status::error(StatusCode::kUnavailable, "no file is open as a source");
  return sources->read_now(offset, bytes, buffer);
}

uint64_t Runtime::read_host(uint64_t address, uint64_t first, uint64_t bytes, std::byte* buffer, uint64_t* page_end) {
  *page_end = first + bytes;
  std::unique_lock lock(mutex_);
  const RegionId region = region_of_locked(address);
  if (!region.valid() || !refusal_locked().ok()) return 0;
  const auto pages = pager_->pages_of(region);
  const uint64_t wanted = pager_->region_offset(region) + first;
  const auto found = std::find_if(pages.begin(), pages.end(), [&](PageId id) {
    return wanted < pager_->page(id).offset + pager_->page(id).bytes;
  });
  if (found == pages.end()) return 0;
  const PageId id = *found;
  const uint64_t in_page = wanted - pager_->page(id).offset;
  const uint64_t count = std::min(bytes, pager_->page(id).bytes - in_page);
  *page_end = first + count;
  bool held = false;
  if (!core_locked([&] { held = pager_->begin_read(id); }).ok() || !held) return 0;
  const SpanList spans = pager_->page(id).host;
  lock.unlock();  // the copy stays where it is until read_done
  uint64_t begin = 0;
  for (const Span& span : spans) {
    const uint64_t from = std::max(begin, in_page), to = std::min(begin + span.bytes, in_page + count);
    if (from < to) std::memcpy(buffer + (from - in_page), arena_->base() + span.offset + (from - begin), to - from);
    begin += span.bytes;
  }
  lock.lock();
  (void)core_locked([&] { pager_->read_done(id); });
  after_core_locked();
  return count;
}

std::vector<Runtime::SourcedRun> Runtime::sourced_runs(uint64_t address) {
  std::vector<SourcedRun> runs;
  std::lock_guard lock(mutex_);
  const RegionId region = region_of_locked(address);
  if (!region.valid()) return runs;
  for (const PageId id : pager_->pages_of(region)) {
    const Page& page = pager_->page(id);
    const Source part = page.sourced ? pager_->source_of(page) : Source{};
    if (part.bytes == 0) continue;
    const uint64_t first = page.offset - pager_->region_offset(region);
    if (!runs.empty() && runs.back().first + runs.back().source.bytes == first) {
      runs.back().source.bytes += part.bytes;
    } else {
      runs.push_back({first, part});
    }
  }
  return runs;
}

}  // namespace tierpage
