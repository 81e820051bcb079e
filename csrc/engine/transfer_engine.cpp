// Execution of actions.
#include "engine/transfer_engine.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace tierpage {
namespace {

uint32_t page_of(TransferId transfer) { return static_cast<uint32_t>(transfer.value >> 32); }

static_assert(static_cast<int>(CopyDirection::kToDevice) == static_cast<int>(Link::kToDevice) &&
              static_cast<int>(CopyDirection::kToHost) == static_cast<int>(Link::kToHost));
size_t direction_of(Link copy) { return static_cast<size_t>(copy); }

constexpr size_t kDiskRequestsMax = 16;

}  // namespace

// "page 12 of 2097152 bytes, nvme to device"
std::string TransferEngine::text_of(const Flight& flight) {
  static constexpr const char* kWays[] = {"host to device", "device to host", "nvme to device",
                                          "device to nvme", "host to nvme",   "nvme to host"};
  static_assert(std::size(kWays) == static_cast<size_t>(EventKind::kNvmeToHost) + 1);
  return "page " + std::to_string(page_of(flight.action.transfer)) + " of " + std::to_string(flight.action.bytes) +
         " bytes, " + kWays[static_cast<size_t>(flight.route.event)];
}

TransferEngine::TransferEngine(DeviceBackend& backend, HostArena* arena, BlockStore* store, StagingBuffers* staging,
                               EventLog& log, bool store_reaches_device)
    : backend_(backend), arena_(arena), store_(store), staging_(staging), log_(log),
      store_reaches_device_(store_reaches_device) {
  if (backend_.coder() != nullptr) code_ring_ = CodeRing(backend_.coder()->options().ring_bytes);
}

void TransferEngine::detach_lower_tiers() {
  arena_ = nullptr;
  store_ = nullptr;
  staging_ = nullptr;
  sources_ = nullptr;
}

bool TransferEngine::must_poll() const {
  if (code_meter_.under_way() > 0) return true;
  return !watched_.empty() || (backend_.info().must_poll && (submitted_[0] > 0 || submitted_[1] > 0));
}

std::string TransferEngine::queue_state() const {
  return std::to_string(flights_.size()) + " transfers under way, device copies " + std::to_string(submitted_[0]) +
         " up and " + std::to_string(submitted_[1]) + " down, disk requests " + std::to_string(disk_requests_) +
         ", pages being coded " + std::to_string(code_meter_.under_way()) + ", fences awaited " +
         std::to_string(watched_.size());
}

StuckTransfers TransferEngine::stuck(int64_t now_ns, int64_t patience_ns) const {
  StuckTransfers found;
  const Piece* oldest = nullptr;
  std::vector<const Flight*> seen;
  for (const Piece& piece : pieces_) {
    if (piece.issued_ns == 0 || now_ns - piece.issued_ns < patience_ns) continue;
    if (oldest == nullptr || piece.issued_ns < oldest->issued_ns) oldest = &piece;
    if (std::find(seen.begin(), seen.end(), piece.flight) != seen.end()) continue;
    seen.push_back(piece.flight);
    found.bytes += piece.flight->action.bytes;
  }
  const Flight* coded = nullptr;  // with the coder for longest
  for (const auto& [id, flight] : flights_) {
    if (flight.coding_since_ns == 0 || now_ns - flight.coding_since_ns < patience_ns) continue;
    if (coded == nullptr || flight.coding_since_ns < coded->coding_since_ns) coded = &flight;
    seen.push_back(&flight);
    found.bytes += flight.action.bytes;
  }
  found.count = seen.size();
  if (coded != nullptr && (oldest == nullptr || coded->coding_since_ns < oldest->issued_ns)) {
    found.oldest = coded->action.transfer;
    found.oldest_ns = now_ns - coded->coding_since_ns;
    found.text =
        text_of(*coded) + ", has been with the coder for " + std::to_string(found.oldest_ns / 1'000'000'000) + " s";
    return found;
  }
  if (oldest == nullptr) return found;
  static constexpr const char* kHops[] = {"copy to the device", "copy from the device", "disk read", "disk write"};
  static_assert(std::size(kHops) == kLinkCount);
  const Flight& flight = *oldest->flight;
  found.oldest = flight.action.transfer;
  found.oldest_ns = now_ns - oldest->issued_ns;
  found.text = text_of(flight) + ", has made no progress for " + std::to_string(found.oldest_ns / 1'000'000'000) +
               " s: a " + kHops[static_cast<size_t>(oldest->link())] + " of " + std::to_string(oldest->part.bytes) +
               " bytes";
  if (!is_copy(oldest->link())) {
    found.text += " at offset " + std::to_string(oldest->part.nvme_offset) + " of the NVMe tier";
  }
  found.text += " has not come back; " + std::to_string(found.count) + " transfers of " + std::to_string(found.bytes) +
                " bytes hang";
  return found;
}

void TransferEngine::execute(const Action& action, Finished& finished) {
  switch (action.kind) {
    case ActionKind::kReleaseFrame: {
      const int64_t start = realtime_ns();
      backend_.release_frame(action.frame);
      log_.add({EventKind::kRelease, 0, start, mapped_since(start, 0), 0});
      return;
    }
    case ActionKind::kWatchFence: watched_.push_back(action.fence); return;
    case ActionKind::kRecordFence: {
      Fence fence;
      const bool recorded = backend_.record_lasting_fence(action.native_stream, &fence).ok();
      finished.recorded.push_back({action.fence.stream, fence, !recorded});
      return;
    }
    case ActionKind::kMap: execute_map(action, finished); return;
    case ActionKind::kUnmap: {
      const int64_t start = realtime_ns();
      Status status = backend_.unmap(action.frame, action.device_offset);
      if (!status.ok()) status.code = StatusCode::kInternal;  // the range's state is unknown: the pager must stop
      log_.add({EventKind::kUnmap, page_of(action.transfer), start, mapped_since(start, 1), action.bytes});
      finished.transfers.push_back({action.transfer, TransferResult{std::move(status)}, steady_ns()});
      return;
    }
    case ActionKind::kFetch: {
      TransferResult result;
      if (!bring_frame(action, result, finished)) {
        finished.transfers.push_back({action.transfer, std::move(result), steady_ns()});
        return;
      }
      break;
    }
    case ActionKind::kWriteBack:
      // Before the first byte is read: what is written meanwhile through a raw pointer is noticed.
      if (Status status = backend_.forbid_writes(action.device_offset, action.bytes); !status.ok()) {
        finished.transfers.push_back({action.transfer, TransferResult{std::move(status)}, steady_ns()});
        return;
      }
      break;
    case ActionKind::kSpill:
    case ActionKind::kStage: break;
  }
  const RouteLimits limits{kLimitUp.piece_bytes, kLimitDown.piece_bytes,
                           staging_ != nullptr ? staging_->slot_bytes() : 0, SourceFiles::kAlignment,
                           store_reaches_device_};
  Flight& flight = flights_[action.transfer];
  flight.action = action;
  flight.route = route_of(action, limits);
  flight.start_ns = realtime_ns();
  if (wants_code(action)) {
    wait_for_code_place(flight);
  } else {
    cut(flight);
  }
  pump(finished);
  // Where looking costs nothing, a copy that ended inside its submission ends now, not after the mappings that follow.
  if (!backend_.info().must_poll) collect_copies(finished);
}

// The time since `start_ns`, which went by in the driver.
int64_t TransferEngine::mapped_since(int64_t start_ns, uint64_t mappings) {
  const int64_t duration_ns = realtime_ns() - start_ns;
  work_.mapping_ns += duration_ns;
  work_.mappings += mappings;
  return duration_ns;
}

bool TransferEngine::bring_frame(const Action& action, TransferResult& result, Finished& finished) {
  result.mapped = false;
  finished.arrivals.push_back({action.transfer, ArrivalStage::kMapping, steady_ns()});
  if (action.create_frame) {
    const int64_t start = realtime_ns();
    result.status = action.overflow ? backend_.create_overflow_frame(action.frame, action.bytes)
                                    : backend_.create_frame(action.frame, action.bytes);
    result.frame_created = result.status.ok();
    log_.add({EventKind::kCreate, page_of(action.transfer), start, mapped_since(start, 0), action.bytes});
    if (!result.status.ok()) return false;
  }
  const bool fetches = action.kind == ActionKind::kFetch;
  const int64_t start = realtime_ns();
  result.status =
      fetches ? backend_.place(action.frame, action.device_offset) : backend_.map(action.frame, action.device_offset);
  result.mapped = result.status.ok();
  log_.add({EventKind::kMap, page_of(action.transfer), start, mapped_since(start, 1), action.bytes});
  if (fetches) {
    finished.arrivals.push_back({action.transfer, ArrivalStage::kCopying, steady_ns()});
  }
  return result.mapped;
}

void TransferEngine::execute_map(const Action& action, Finished& finished) {
  TransferResult result;
  bring_frame(action, result, finished);
  finished.transfers.push_back({action.transfer, std::move(result), steady_ns()});
}

void TransferEngine::cut(Flight& flight) {
  Piece piece;
  piece.flight = &flight;
  for (Cutter cutter(flight.action, flight.route); cutter.next(&piece.part);) {
    switch (flight.route.memory) {
      case Route::Memory::kArena: piece.host = arena_->base() + piece.part.arena_offset; break;
      case Route::Memory::kDevice:
        piece.host = (flight.code_place.valid() ? code_of(flight) : backend_.memory_at(flight.action.device_offset)) +
                     piece.part.done;
        break;
      case Route::Memory::kSlot: break;  // once it has one
    }
    add_piece(piece);
  }
}

// Bytes that the covering range of a staged piece has before the content.
uint64_t TransferEngine::lead_of(const Piece& piece) {
  return piece.route().sourced && piece.route().staged() ? piece.part.nvme_offset % SourceFiles::kAlignment : 0;
}

void TransferEngine::zero_rest(const Piece& piece) {
  const uint64_t read = piece.part.source_bytes;
  if (read < piece.part.bytes) std::memset(static_cast<std::byte*>(piece.host) + read, 0, piece.part.bytes - read);
}

void TransferEngine::add_piece(const Piece& prototype) {
  uint32_t index;
  if (unused_pieces_.empty()) {
    index = static_cast<uint32_t>(pieces_.size());
    pieces_.emplace_back();
  } else {
    index = unused_pieces_.back();
    unused_pieces_.pop_back();
  }
  const Piece& piece = pieces_[index] = prototype;
  ++piece.flight->pieces_left;
  ++piece.flight->copies_left;
  std::deque<uint32_t>& queue = waiting_[static_cast<size_t>(piece.link())];
  if (!piece.flight->action.urgent) {
    queue.push_back(index);
    return;
  }
  // Behind the urgent ones that are there already, before the rest.
  auto place = std::find_if(queue.begin(), queue.end(),
                            [this](uint32_t other) { return !pieces_[other].flight->action.urgent; });
  queue.insert(place, index);
}

bool TransferEngine::may_submit(Link link) const {
  if (!is_copy(link)) return disk_requests_ < kDiskRequestsMax;
  return submitted_[direction_of(link)] < kLimits[direction_of(link)].submitted;
}

// Starts what the limits allow. Those in a slot first: they free it.
void TransferEngine::pump(Finished& finished) {
  do {
    pump_again_ = false;
    pump_once(finished);
  } while (pump_again_);
}

void TransferEngine::pump_once(Finished& finished) {
  begin_coding(finished);
  while (!waiting_in_slot_.empty() && may_submit(Link::kToDevice)) {
    const uint32_t index = waiting_in_slot_.front();
    waiting_in_slot_.pop_front();
    if (!start(index, finished)) break;
  }
  for (const Link link : {Link::kToDevice, Link::kToHost, Link::kNvmeRead, Link::kNvmeWrite}) {
    std::deque<uint32_t>& queue = waiting_[static_cast<size_t>(link)];
    while (!queue.empty() && may_submit(link)) {
      const uint32_t index = queue.front();
      Piece& piece = pieces_[index];
      if (piece.route().staged()) {
        piece.slot = staging_->take();
        if (piece.slot < 0) break;
        piece.host = staging_->memory(piece.slot) + lead_of(piece);
      }
      queue.pop_front();
      start(index, finished);
    }
  }
}

bool TransferEngine::start(uint32_t piece_index, Finished& finished) {
  // A sibling failed: the transfer is lost already, do not move more.
  const Piece& piece = pieces_[piece_index];
  Status status = piece.flight->status;
  if (status.ok() && piece.route().sourced && piece.part.source_bytes == 0 && piece.link() == Link::kNvmeRead) {
    zero_rest(piece);  // lies beyond the content: nothing to read
    pump_again_ = true;
    piece_done(piece_index, status, finished);
    return true;
  }
  if (status.ok()) status = issue(piece_index);
  if (status.ok()) return true;
  piece_done(piece_index, status, finished);
  return false;
}

Status TransferEngine::submit(uint32_t piece_index, Link link) {
  const Piece& piece = pieces_[piece_index];
  const Part& part = piece.part;
  if (is_copy(link)) {
    const Flight& flight = *piece.flight;
    return backend_.submit_copy({piece_index, static_cast<CopyDirection>(link), flight.action.device_offset + part.done,
                                 piece.host, part.bytes,
                                 flight.code_place.valid() ? code_of(flight) + part.done : nullptr});
  }
  const StoreOperation operation = link == Link::kNvmeRead ? StoreOperation::kRead : StoreOperation::kWrite;
  if (!piece.route().sourced) return store_->submit({piece_index, operation, part.nvme_offset, part.bytes, piece.host});
  const uint64_t lead = lead_of(piece);
  uint64_t bytes = part.source_bytes;
  // All of the range that covers it.
  if (piece.route().staged()) bytes = round_up(lead + bytes, SourceFiles::kAlignment);
  std::byte* const buffer = static_cast<std::byte*>(piece.host) - lead;
  return sources_->submit({piece_index, operation, part.nvme_offset - lead, bytes, buffer});
}

Status TransferEngine::issue(uint32_t piece_index) {
  const Link link = pieces_[piece_index].link();
  const int64_t start = steady_ns();  // before the copy: one that ends at once was busy too
  Status status = submit(piece_index, link);
  work_.copying_ns += steady_ns() - start;
  if (!status.ok()) return status;
  ++work_.copies;
  ++(is_copy(link) ? submitted_[direction_of(link)] : disk_requests_);
  meter_.began(link, start);
  pieces_[piece_index].issued_ns = start;
  return status;
}

void TransferEngine::collect_copies(Finished& finished) {
  copy_completions_.clear();
  backend_.poll_copies(copy_completions_);
  const int64_t now = steady_ns();
  for (const CopyCompletion& completion : copy_completions_) {
    const Piece& piece = pieces_[completion.cookie];
    --submitted_[direction_of(piece.link())];
    meter_.ended(piece.link(), piece.part.bytes, content_bytes(piece), now);
    piece_done(static_cast<uint32_t>(completion.cookie), completion.status, finished);
  }
}

void TransferEngine::poll(Finished& finished) {
  const int64_t start = steady_ns(), copying_before_ns = work_.copying_ns;
  collect(finished);
  pump(finished);
  work_.completing_ns += steady_ns() - start - (work_.copying_ns - copying_before_ns);
}

void TransferEngine::collect(Finished& finished) {
  collect_codes(finished);
  collect_copies(finished);
  backend_.take_times(finished.times);
  store_completions_.clear();
  if (store_ != nullptr) store_->poll(store_completions_);
  if (sources_ != nullptr) sources_->poll(store_completions_);
  const int64_t now = steady_ns();
  for (const StoreCompletion& completion : store_completions_) {
    --disk_requests_;
    const Piece& piece = pieces_[completion.cookie];
    meter_.ended(piece.link(), piece.part.bytes, content_bytes(piece), now);
    if (piece.route().sourced) zero_rest(piece);
    piece_done(static_cast<uint32_t>(completion.cookie), completion.status, finished);
  }
  std::erase_if(watched_, [&](const Fence& fence) {
    if (!backend_.fence_done(fence)) return false;
    finished.fences.push_back(fence);
    return true;
  });
}

void TransferEngine::piece_done(uint32_t piece_index, const Status& status, Finished& finished) {
  Piece& piece = pieces_[piece_index];
  Flight& flight = *piece.flight;
  piece.issued_ns = 0;
  if (!status.ok() && flight.status.ok()) {
    flight.status = status;
    flight.status.message = text_of(flight) + ": " + status.message;
  }
  if (status.ok() && piece.hop + 1 < flight.route.hop_count) {
    if (piece.link() == Link::kToHost && flight.code_place.valid()) code_left_device(flight);
    ++piece.hop;
    next_hop(piece_index, finished);
    return;
  }
  if (piece.slot >= 0) staging_->give_back(piece.slot);
  piece = Piece{};
  unused_pieces_.push_back(piece_index);
  if (--flight.pieces_left > 0) return;
  if (flight.fetches() && flight.code_place.valid() && flight.status.ok()) {
    flight.rescue == nullptr ? decode(flight, finished) : rescue(flight, finished);
    return;  // it ends with the decoding
  }
  finish_flight(flight.action.transfer, finished);
}

// A copy waits for its turn on the link; a disk request goes at once, beyond the limit, since it frees a slot.
void TransferEngine::next_hop(uint32_t piece_index, Finished& finished) {
  if (is_copy(pieces_[piece_index].link())) {
    waiting_in_slot_.push_back(piece_index);
  } else if (const Status issued = issue(piece_index); !issued.ok()) {
    piece_done(piece_index, issued, finished);
  }
}

void TransferEngine::finish_flight(TransferId id, Finished& finished) {
  const auto found = flights_.find(id);
  Flight& flight = found->second;
  if (flight.status.ok() && flight.action.kind == ActionKind::kFetch) {
    flight.status = backend_.reveal(flight.action.frame, flight.action.device_offset);
  }
  const int64_t duration_ns = realtime_ns() - flight.start_ns;
  log_.add({flight.route.event, page_of(id), flight.start_ns, duration_ns, flight.route.moved_bytes});
  give_place_back(flight);
  const TransferResult result{flight.status, true, true, flight.coded_bytes, flight.incompressible};
  finished.transfers.push_back({id, result, steady_ns()});
  flights_.erase(found);
}

}  // namespace tierpage
