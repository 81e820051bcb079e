// Execution of actions.
#include "engine/transfer_engine.h"

#include <algorithm>
#include <cstring>

namespace tierpage {
namespace {

EventKind kind_of(const Action& action) {
  const bool host = action.lower == Tier::kHost;
  switch (action.kind) {
    case ActionKind::kFetch: return host ? EventKind::kHostToDevice : EventKind::kNvmeToDevice;
    case ActionKind::kWriteBack: return host ? EventKind::kDeviceToHost : EventKind::kDeviceToNvme;
    case ActionKind::kSpill: return EventKind::kHostToNvme;
    case ActionKind::kStage: return EventKind::kNvmeToHost;
    default: return EventKind::kMap;
  }
}

uint32_t page_of(TransferId transfer) { return static_cast<uint32_t>(transfer.value >> 32); }

// "page 12 of 2097152 bytes, nvme to device"
std::string describe(const Action& action) {
  const char* words[] = {"host to device", "device to host", "nvme to device", "device to nvme", "host to nvme", "nvme to host"};
  return "page " + std::to_string(page_of(action.transfer)) + " of " + std::to_string(action.bytes) + " bytes, " +
         words[static_cast<int>(kind_of(action))];
}

constexpr size_t kDiskRequestsMax = 16;

}  // namespace

TransferEngine::TransferEngine(DeviceBackend& backend, HostArena* arena, BlockStore* store, StagingRing* ring,
                               EventLog& log, uint64_t piece_bytes, bool store_reaches_device)
    : backend_(backend),
      arena_(arena),
      store_(store),
      ring_(ring),
      log_(log),
      piece_bytes_(piece_bytes),
      store_reaches_device_(store_reaches_device) {}

void TransferEngine::detach_lower_tiers() {
  arena_ = nullptr;
  store_ = nullptr;
  ring_ = nullptr;
  sources_ = nullptr;
}

bool TransferEngine::must_poll() const {
  return !watched_.empty() || (backend_.info().must_poll && (submitted_[0] > 0 || submitted_[1] > 0));
}

std::string TransferEngine::queue_state() const {
  return std::to_string(flights_.size()) + " transfers under way, device copies " + std::to_string(submitted_[0]) +
         " up and " + std::to_string(submitted_[1]) + " down, disk requests " + std::to_string(disk_requests_) +
         ", fences awaited " + std::to_string(watched_.size());
}

StuckTransfers TransferEngine::stuck(int64_t now_ns, int64_t patience_ns) const {
  StuckTransfers found;
  const Piece* oldest = nullptr;
  std::vector<TransferId> seen;
  for (const Piece& piece : pieces_) {
    if (piece.issued_ns == 0 || now_ns - piece.issued_ns < patience_ns) continue;
    if (oldest == nullptr || piece.issued_ns < oldest->issued_ns) oldest = &piece;
    if (std::find(seen.begin(), seen.end(), piece.transfer) != seen.end()) continue;
    seen.push_back(piece.transfer);
    found.bytes += flights_.at(piece.transfer).action.bytes;
  }
  found.count = seen.size();
  if (oldest == nullptr) return found;
  static constexpr const char* kSteps[] = {"copy to the device", "copy from the device", "disk read", "disk write"};
  found.oldest = oldest->transfer;
  found.oldest_ns = now_ns - oldest->issued_ns;
  const Step step = current_step(*oldest);
  found.text = describe(flights_.at(oldest->transfer).action) + ", has made no progress for " +
               std::to_string(found.oldest_ns / 1'000'000'000) + " s: a " + kSteps[static_cast<int>(step)] + " of " +
               std::to_string(oldest->bytes) + " bytes";
  if (step == Step::kRead || step == Step::kWrite) {
    found.text += " at offset " + std::to_string(oldest->nvme_offset) + " of the NVMe tier";
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
      log_.add({EventKind::kRelease, 0, start, realtime_ns() - start, 0});
      return;
    }
    case ActionKind::kWatchFence:
      watched_.push_back(action.fence);
      return;
    case ActionKind::kRecordFence: {
      Fence fence;
      const bool recorded = backend_.record_fence(action.native_stream, &fence).ok();
      finished.recorded.push_back({action.fence.stream, fence, !recorded});
      return;
    }
    case ActionKind::kMap:
      execute_map(action, finished);
      return;
    case ActionKind::kUnmap: {
      const int64_t start = realtime_ns();
      Status status = backend_.unmap(action.frame, action.device_offset);
      if (!status.ok()) status.code = StatusCode::kInternal;  // the range's state is unknown: the pager must stop
      log_.add({EventKind::kUnmap, page_of(action.transfer), start, realtime_ns() - start, action.bytes});
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
    case ActionKind::kSpill:
    case ActionKind::kStage: break;
  }
  flights_[action.transfer] = Flight{action, 0, Status::success(), realtime_ns()};
  cut(action);
  pump(finished);
  // Where looking costs nothing, a copy that ended inside its submission ends now, not after the mappings that follow.
  if (!backend_.info().must_poll) collect_copies(finished);
}

bool TransferEngine::bring_frame(const Action& action, TransferResult& result, Finished& finished) {
  result.mapped = false;
  finished.arrivals.push_back({action.transfer, ArrivalStage::kMapping, steady_ns()});
  if (action.create_frame) {
    const int64_t start = realtime_ns();
    result.status = backend_.create_frame(action.frame, action.bytes);
    result.frame_created = result.status.ok();
    log_.add({EventKind::kCreate, page_of(action.transfer), start, realtime_ns() - start, action.bytes});
    if (!result.status.ok()) return false;
  }
  result.status = backend_.map(action.frame, action.device_offset);
  result.mapped = result.status.ok();
  if (action.kind == ActionKind::kFetch) finished.arrivals.push_back({action.transfer, ArrivalStage::kCopying, steady_ns()});
  return result.mapped;
}

void TransferEngine::execute_map(const Action& action, Finished& finished) {
  const int64_t start = realtime_ns();
  TransferResult result;
  bring_frame(action, result, finished);
  log_.add({EventKind::kMap, page_of(action.transfer), start, realtime_ns() - start, action.bytes});
  finished.transfers.push_back({action.transfer, std::move(result), steady_ns()});
}

// Walks the span lists of the two sides in step and cuts pieces that are contiguous on both.
void TransferEngine::cut(const Action& action) {
  const bool uses_device = action.kind == ActionKind::kFetch || action.kind == ActionKind::kWriteBack;
  const bool uses_host = !uses_device || action.lower == Tier::kHost;
  const bool uses_nvme = !uses_device || action.lower == Tier::kNvme;
  const bool past_host = uses_device && uses_nvme;
  const bool sourced = action.sourced && uses_nvme;
  const bool staged = past_host && (sourced || !store_reaches_device_);  // files of others are read into RAM
  const uint64_t limit = piece_limit(action, staged, sourced);
  size_t host_index = 0, nvme_index = 0;
  uint64_t host_done = 0, nvme_done = 0;
  for (uint64_t done = 0; done < action.bytes;) {
    uint64_t bytes = std::min(limit, action.bytes - done);
    Piece piece;
    piece.transfer = action.transfer;
    piece.staged = staged;
    piece.device_offset = action.device_offset + done;
    if (past_host && !staged) piece.host = backend_.base() + piece.device_offset;
    if (uses_host) {
      const Span& span = action.host[host_index];
      bytes = std::min(bytes, span.bytes - host_done);
      piece.host = arena_->base() + span.offset + host_done;
    }
    if (sourced) {
      piece.sourced = true;
      piece.nvme_offset = action.source.offset + done;
    } else if (uses_nvme) {
      const Span& span = action.nvme[nvme_index];
      bytes = std::min(bytes, span.bytes - nvme_done);
      piece.nvme_offset = span.offset + nvme_done;
    }
    piece.bytes = bytes;
    if (sourced) piece.source_bytes = std::min(bytes, action.source.bytes - std::min(done, action.source.bytes));
    if (uses_host && (host_done += bytes) == action.host[host_index].bytes) ++host_index, host_done = 0;
    if (uses_nvme && !sourced && (nvme_done += bytes) == action.nvme[nvme_index].bytes) ++nvme_index, nvme_done = 0;
    done += bytes;
    add_piece(action, piece);
  }
}

// A slot also holds what a covering range has before the content; then pieces of equal size, or the last one would be tiny.
uint64_t TransferEngine::piece_limit(const Action& action, bool staged, bool sourced) const {
  uint64_t limit = action.kind == ActionKind::kWriteBack ? std::min(piece_bytes_, kDownPieceBytes) : piece_bytes_;
  if (staged) limit = std::min(limit, ring_->slot_bytes());
  if (!staged || !sourced) return limit;
  limit -= SourceFiles::kAlignment;
  const uint64_t count = (action.bytes + limit - 1) / limit;
  return round_up((action.bytes + count - 1) / count, SourceFiles::kAlignment);
}

// Bytes that the covering range of a staged piece has before the content.
uint64_t TransferEngine::lead_of(const Piece& piece) {
  return piece.sourced ? piece.nvme_offset % SourceFiles::kAlignment : 0;
}

void TransferEngine::zero_rest(const Piece& piece) {
  if (piece.source_bytes < piece.bytes) {
    std::memset(static_cast<std::byte*>(piece.host) + piece.source_bytes, 0, piece.bytes - piece.source_bytes);
  }
}

void TransferEngine::add_piece(const Action& action, const Piece& prototype) {
  uint32_t index;
  if (unused_pieces_.empty()) {
    index = static_cast<uint32_t>(pieces_.size());
    pieces_.emplace_back();
  } else {
    index = unused_pieces_.back();
    unused_pieces_.pop_back();
  }
  Piece& piece = pieces_[index];
  piece = prototype;
  switch (action.kind) {
    case ActionKind::kFetch: piece.first = action.lower == Tier::kNvme ? Step::kRead : Step::kCopyToDevice; break;
    case ActionKind::kWriteBack:
      piece.first = action.lower == Tier::kNvme && !piece.staged ? Step::kWrite : Step::kCopyToHost;
      break;
    case ActionKind::kSpill: piece.first = Step::kWrite; break;
    default: piece.first = Step::kRead; break;
  }
  ++flights_[action.transfer].pieces_left;
  std::deque<uint32_t>& queue = waiting_[static_cast<int>(piece.first)];
  if (!action.urgent) {
    queue.push_back(index);
    return;
  }
  // Behind the urgent ones that are there already, before the rest.
  auto place = std::find_if(queue.begin(), queue.end(), [this](uint32_t other) {
    return !flights_.at(pieces_[other].transfer).action.urgent;
  });
  queue.insert(place, index);
}

TransferEngine::Step TransferEngine::current_step(const Piece& piece) const {
  if (!piece.second) return piece.first;
  return piece.first == Step::kRead ? Step::kCopyToDevice : Step::kWrite;
}

// Starts what the limits allow. Second halves first: they free slots of the ring.
void TransferEngine::pump(Finished& finished) {
  do {
    pump_again_ = false;
    pump_once(finished);
  } while (pump_again_);
}

void TransferEngine::pump_once(Finished& finished) {
  for (const int direction : {0, 1}) {
    std::deque<uint32_t>& ready = second_half_[direction];
    while (!ready.empty() && submitted_[direction] < kSubmitted[direction]) {
      const uint32_t index = ready.front();
      ready.pop_front();
      if (!start(index, finished)) break;
    }
  }
  for (const Step step : {Step::kCopyToDevice, Step::kCopyToHost, Step::kRead, Step::kWrite}) {
    std::deque<uint32_t>& queue = waiting_[static_cast<int>(step)];
    while (!queue.empty()) {
      const bool copy = step == Step::kCopyToDevice || step == Step::kCopyToHost;
      const int direction = step == Step::kCopyToDevice ? 0 : 1;
      if (copy && submitted_[direction] >= kSubmitted[direction]) break;
      if (!copy && disk_requests_ >= kDiskRequestsMax) break;
      const uint32_t index = queue.front();
      Piece& piece = pieces_[index];
      if (piece.staged && piece.slot < 0) {
        piece.slot = ring_->take();
        if (piece.slot < 0) break;
        piece.host = ring_->memory(piece.slot) + lead_of(piece);
      }
      queue.pop_front();
      start(index, finished);
    }
  }
}

bool TransferEngine::start(uint32_t piece_index, Finished& finished) {
  // A sibling failed: the transfer is lost already, do not move more.
  const Piece& piece = pieces_[piece_index];
  Status status = flights_.at(piece.transfer).status;
  if (status.ok() && piece.sourced && piece.source_bytes == 0 && current_step(piece) == Step::kRead) {
    zero_rest(piece);  // lies beyond the content: nothing to read
    pump_again_ = true;
    piece_done(piece_index, status, finished);
    return true;
  }
  if (status.ok()) status = issue(piece_index);
  if (status.ok()) return true;
  pieces_[piece_index].second = true;  // no further step
  piece_done(piece_index, status, finished);
  return false;
}

Status TransferEngine::issue(uint32_t piece_index) {
  const Piece& piece = pieces_[piece_index];
  const Step step = current_step(piece);
  const int64_t start = steady_ns();  // before the copy: one that ends at once was busy too
  Status status;
  if (step == Step::kCopyToDevice || step == Step::kCopyToHost) {
    const auto direction = step == Step::kCopyToDevice ? CopyDirection::kToDevice : CopyDirection::kToHost;
    status = backend_.submit_copy({piece_index, direction, piece.device_offset, piece.host, piece.bytes});
    if (status.ok()) ++submitted_[static_cast<int>(direction)];
  } else {
    const auto operation = step == Step::kRead ? StoreOperation::kRead : StoreOperation::kWrite;
    if (piece.sourced && piece.staged) {
      const uint64_t lead = lead_of(piece);
      const uint64_t covered = round_up(lead + piece.source_bytes, SourceFiles::kAlignment);
      status = sources_->submit({piece_index, operation, piece.nvme_offset - lead, covered, static_cast<std::byte*>(piece.host) - lead});
    } else if (piece.sourced) {
      status = sources_->submit({piece_index, operation, piece.nvme_offset, piece.source_bytes, piece.host});
    } else {
      status = store_->submit({piece_index, operation, piece.nvme_offset, piece.bytes, piece.host});
    }
    if (status.ok()) ++disk_requests_;
  }
  if (status.ok()) {
    meter_.began(link_of(step), start);
    pieces_[piece_index].issued_ns = start;
  }
  return status;
}

void TransferEngine::collect_copies(Finished& finished) {
  copy_completions_.clear();
  backend_.poll_copies(copy_completions_);
  const int64_t now = steady_ns();
  for (const CopyCompletion& completion : copy_completions_) {
    const Piece& piece = pieces_[completion.cookie];
    const Step step = current_step(piece);
    --submitted_[step == Step::kCopyToDevice ? 0 : 1];
    meter_.ended(link_of(step), piece.bytes, now);
    piece_done(static_cast<uint32_t>(completion.cookie), completion.status, finished);
  }
}

void TransferEngine::poll(Finished& finished) {
  collect_copies(finished);
  backend_.take_times(finished.times);
  store_completions_.clear();
  if (store_ != nullptr) store_->poll(store_completions_);
  if (sources_ != nullptr) sources_->poll(store_completions_);
  const int64_t now = steady_ns();
  for (const StoreCompletion& completion : store_completions_) {
    --disk_requests_;
    const Piece& piece = pieces_[completion.cookie];
    meter_.ended(link_of(current_step(piece)), piece.bytes, now);
    if (piece.sourced) zero_rest(piece);
    piece_done(static_cast<uint32_t>(completion.cookie), completion.status, finished);
  }
  std::erase_if(watched_, [&](const Fence& fence) {
    if (!backend_.fence_done(fence)) return false;
    finished.fences.push_back(fence);
    return true;
  });
  pump(finished);
}

void TransferEngine::piece_done(uint32_t piece_index, const Status& status, Finished& finished) {
  Piece& piece = pieces_[piece_index];
  Flight& flight = flights_.at(piece.transfer);
  piece.issued_ns = 0;
  if (!status.ok() && flight.status.ok()) {
    flight.status = status;
    flight.status.message = describe(flight.action) + ": " + status.message;
  }
  if (piece.staged && !piece.second && status.ok()) {
    piece.second = true;
    if (piece.first == Step::kRead) {
      second_half_[0].push_back(piece_index);
    } else if (const Status issued = issue(piece_index); !issued.ok()) {
      piece_done(piece_index, issued, finished);
    }
    return;
  }
  if (piece.slot >= 0) ring_->give_back(piece.slot);
  const TransferId id = piece.transfer;
  piece = Piece{};
  unused_pieces_.push_back(piece_index);
  if (--flight.pieces_left == 0) finish_flight(id, finished);
}

void TransferEngine::finish_flight(TransferId id, Finished& finished) {
  const auto found = flights_.find(id);
  const Flight& flight = found->second;
  log_.add({kind_of(flight.action), page_of(id), flight.start_ns, realtime_ns() - flight.start_ns, flight.action.bytes});
  finished.transfers.push_back({id, TransferResult{flight.status, true, true}, steady_ns()});
  flights_.erase(found);
}

}  // namespace tierpage
