#include "engine/runtime_sources.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "codec/page_codec.h"

namespace tierpage {
namespace {

// `count` bytes from the byte `first` on of what lies in the spans, one behind the other.
void copy_spans(const std::byte* ram, const SpanList& spans, uint64_t first, uint64_t count, std::byte* buffer) {
  uint64_t begin = 0;
  for (const Span& span : spans) {
    const uint64_t from = std::max(begin, first), to = std::min(begin + span.bytes, first + count);
    if (from < to) std::memcpy(buffer + (from - first), ram + span.offset + (from - begin), to - from);
    begin += span.bytes;
  }
}

}  // namespace

// Reads pass through the staging buffers, which there are not yet without an NVMe tier: they are taken out of the RAM
// budget, when all has been opened.
Status RuntimeSources::open() {
  uint64_t staging_bytes = 0;  // 0: there are buffers
  {
    LockGuard lock(core_.mutex());
    if (core_.ended_locked()) return core_.end_locked();
    if (core_.closed_locked()) {
      return Status::error(StatusCode::kUnavailable, "paging is disabled: nothing can be backed by a file");
    }
    if (tiers_.sources) return Status::success();
    if (tiers_.staging == nullptr) {
      if (Status status = tiers_.size_staging(&staging_bytes); !status.ok()) return status;
    }
  }
  std::unique_ptr<StagingBuffers> staging;
  if (staging_bytes > 0) {
    if (Status status = tiers_.open_staging(&staging); !status.ok()) return status;
  }
  if (options_.staging_slot_bytes < 2 * SourceFiles::kAlignment) {
    return Status::error(StatusCode::kInvalidArgument,
                         "staging_slot_bytes is " + std::to_string(options_.staging_slot_bytes) +
                             ": files need slots of at least 8192 bytes, to read from places that are not aligned");
  }
  auto sources = std::make_shared<SourceFiles>(SourceFilesOptions{options_.io_workers, options_.direct_io});
  if (Status status = sources->start(); !status.ok()) return status;
  sources->set_wake([](void* self) { static_cast<LockedCore*>(self)->wake(); }, &core_);
  LockGuard lock(core_.mutex());
  tiers_.sources = std::move(sources);
  if (staging_bytes == 0) return Status::success();
  if (const std::string notice = staging->notice(); !notice.empty()) watchdog_.say(notice);
  tiers_.staging = std::move(staging);
  tiers_.staging_bytes = staging_bytes;
  tiers_.config.host_bytes_max -= std::min(tiers_.config.host_bytes_max, staging_bytes);
  return core_.change_locked([&] {
    const uint64_t host = core_->memory().capacity(Tier::kHost);
    core_->set_capacity(Tier::kHost, host > staging_bytes ? host - staging_bytes : 0);
    core_->plan();
  });
}

Status RuntimeSources::add(int descriptor, const std::string& name, const SourceFiles::Version* known,
                           uint64_t* place) {
  if (g_runtimes.forked()) {
    return Status::error(StatusCode::kUnavailable, "a forked child cannot page; start it with \"spawn\"");
  }
  LockGuard closing(close_mutex_);  // one opens, and nobody closes meanwhile
  Status status = open();
  // Without mutex_: opening a file may take long. close_mutex_ keeps tiers_.sources where it is.
  if (status.ok()) status = tiers_.sources->add(descriptor, name, known, place);
  if (!status.ok()) return status;
  LockGuard lock(core_.mutex());
  registry_.opened(*place);
  return status;
}

void RuntimeSources::let_go(uint64_t place) {
  LockGuard lock(core_.mutex());
  if (registry_.let_go(place)) core_.wake_locked();
}

Status RuntimeSources::read(uint64_t offset, uint64_t bytes, std::byte* buffer) {
  std::shared_ptr<SourceFiles> sources;
  {
    LockGuard lock(core_.mutex());
    if (core_.ended_locked()) return core_.end_locked();
    sources = tiers_.sources;
  }
  if (!sources) return Status::error(StatusCode::kUnavailable, "no file is open as a source");
  return sources->read_now(offset, bytes, buffer);
}

uint64_t RuntimeSources::read_host(uint64_t address, uint64_t first, uint64_t bytes, std::byte* buffer,
                                   uint64_t* page_end) {
  *page_end = first + bytes;
  UniqueLock lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid() || !core_.refusal_locked().ok()) return 0;
  const auto pages = core_->memory().region(region).pages;
  const uint64_t wanted = core_->memory().region(region).offset + first;
  const auto found = std::find_if(pages.begin(), pages.end(), [&](PageId id) {
    return wanted < core_->memory().pages[id].offset + core_->memory().pages[id].bytes;
  });
  if (found == pages.end()) return 0;
  const PageId id = *found;
  const uint64_t in_page = wanted - core_->memory().pages[id].offset;
  uint64_t count = std::min(bytes, core_->memory().pages[id].bytes - in_page);
  *page_end = first + count;
  const Page& page = core_->memory().pages[id];
  const bool there = page.is_valid(Tier::kHost) && page.movement == Movement::kNone;
  if (there && decoded_ != nullptr && decoded_->page == id && decoded_->movement_serial == page.movement_serial) {
    const std::shared_ptr<const Decoded> known = decoded_;
    lock.unlock();
    std::memcpy(buffer, known->bytes.data() + in_page, count);
    return count;
  }
  bool held = false;
  if (!core_.events_locked([&] { held = core_->begin_read(id); }).ok() || !held) return 0;
  const SpanList spans = core_->memory().pages[id].host;
  const uint64_t page_bytes = core_->memory().pages[id].bytes;
  const uint64_t stored = core_->memory().pages[id].stored_bytes(Tier::kHost);
  const uint32_t movement_serial = core_->memory().pages[id].movement_serial;
  std::shared_ptr<const Decoded> kept;  // not freed under the lock
  if (stored != page_bytes) kept.swap(decoded_);
  lock.unlock();  // the copy stays where it is until read_done
  kept.reset();
  if (stored == page_bytes) {
    copy_spans(tiers_.arena->base(), spans, in_page, count, buffer);
  } else if ((kept = decoded(id, movement_serial, spans, stored, page_bytes)) != nullptr) {
    std::memcpy(buffer, kept->bytes.data() + in_page, count);
  } else {
    count = 0;  // it is read the long way, whose error says what is wrong
  }
  lock.lock();
  if (kept != nullptr) kept.swap(decoded_);  // another thread may have decoded a page meanwhile
  (void)core_.change_locked([&] { core_->read_done(id); });
  lock.unlock();
  return count;
}

std::shared_ptr<const RuntimeSources::Decoded> RuntimeSources::decoded(PageId id, uint32_t movement_serial,
                                                                       const SpanList& spans, uint64_t stored,
                                                                       uint64_t page_bytes) const {
  try {
    auto fresh = std::make_shared<Decoded>(Decoded{id, movement_serial, std::vector<std::byte>(page_bytes)});
    std::vector<std::byte> code(stored);
    copy_spans(tiers_.arena->base(), spans, 0, stored, code.data());
    if (decode_page(code, fresh->bytes).ok()) return fresh;
  } catch (const std::bad_alloc&) {  // whoever holds the page lets it go
  }
  return nullptr;
}

void RuntimeSources::reading_ends() {
  std::shared_ptr<const Decoded> last;  // freed without the lock
  LockGuard lock(core_.mutex());
  last.swap(decoded_);
}

std::vector<RuntimeSources::Run> RuntimeSources::runs_of(uint64_t address) {
  std::vector<Run> runs;
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid()) return runs;
  for (const PageId id : core_->memory().region(region).pages) {
    const Page& page = core_->memory().pages[id];
    const Source part = page.sourced ? core_->memory().source_of(page) : Source{};
    if (part.bytes == 0) continue;
    const uint64_t first = page.offset - core_->memory().region(region).offset;
    if (!runs.empty() && runs.back().first + runs.back().source.bytes == first) {
      runs.back().source.bytes += part.bytes;
    } else {
      runs.push_back({first, part});
    }
  }
  return runs;
}

}  // namespace tierpage
