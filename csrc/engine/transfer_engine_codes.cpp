// The coded pages among the transfers: places in the coder's ring, and what comes before and behind the pieces.
#include <algorithm>
#include <new>
#include <span>
#include <utility>

#include "codec/page_codec.h"
#include "codec/page_format.h"
#include "engine/transfer_engine.h"

namespace tierpage {
namespace {

constexpr uint64_t kUnitsMin = 4;      // smaller pages stay plain: what they would save is lost by whole units
constexpr uint32_t kDecodingsMax = 2;  // tries of one code, before the processor decodes it

// And not of the content, nor of the device.
bool is_coders_fault(const Status& status) {
  return !status.ok() && status.code != StatusCode::kCorruptPage && status.code != StatusCode::kPagerDead;
}

}  // namespace

bool TransferEngine::wants_code(const Action& action) const {
  if (action.kind == ActionKind::kFetch) return stored_bytes_of(action) < action.bytes;
  if (action.kind != ActionKind::kWriteBack || !action.code || backend_.coder() == nullptr) return false;
  const CoderOptions& options = backend_.coder()->options();
  return action.bytes >= std::max(kUnitsMin * options.unit_bytes, options.page_bytes_min) &&
         action.bytes <= kCodedPageBytesMax;
}

TransferEngine::CodeLine& TransferEngine::line_of(const Flight& flight) {
  if (!flight.fetches()) return code_lines_[kDown];
  return code_lines_[flight.route.stored ? kUpFromDisk : kUp];
}

void TransferEngine::wait_for_code_place(const Flight& flight) {
  std::deque<TransferId>& waiting = line_of(flight).waiting;
  const auto calm = [this](TransferId id) { return !flights_.at(id).action.urgent; };
  const auto place = flight.action.urgent ? std::find_if(waiting.begin(), waiting.end(), calm) : waiting.end();
  waiting.insert(place, flight.action.transfer);
}

uint64_t TransferEngine::code_bytes_wanted(const Flight& flight) const {
  return flight.fetches() ? flight.route.moved_bytes : code_bytes_max(flight.action.bytes);
}

// Whose head comes next; null: nobody may have a place now. Urgent ones first, then the line that holds least. What
// needs a disk, which may hang, leaves room for a code that comes up from RAM.
TransferEngine::CodeLine* TransferEngine::next_to_code() {
  const uint64_t apart = backend_.coder()->options().code_bytes_max;
  const uint64_t disk_bytes_held = code_lines_[kUpFromDisk].held_bytes + code_lines_[kDown].held_bytes;
  CodeLine* chosen = nullptr;
  bool chosen_urgent = false;
  for (CodeLine& line : code_lines_) {
    if (line.waiting.empty()) continue;
    const Flight& head = flights_.at(line.waiting.front());
    const bool by_disk = &line != &code_lines_[kUp];
    if (by_disk && disk_bytes_held + code_bytes_wanted(head) + apart > code_ring_.bytes()) continue;
    const bool urgent = head.action.urgent;
    const bool first = chosen == nullptr || (urgent && !chosen_urgent) ||
                       (urgent == chosen_urgent && line.held_bytes < chosen->held_bytes);
    if (!first) continue;
    chosen = &line;
    chosen_urgent = urgent;
  }
  return chosen;
}

// Gives places to those in line, in order: a short code does not overtake a long one.
void TransferEngine::begin_coding(Finished& finished) {
  if (backend_.coder() == nullptr) return;
  while (CodeLine* const line = next_to_code()) {
    Flight& flight = flights_.at(line->waiting.front());
    const uint64_t bytes = code_bytes_wanted(flight);
    flight.code_place = code_ring_.take(bytes);
    if (!flight.code_place.valid()) return;
    line->held_bytes += bytes;
    line->waiting.pop_front();
    if (flight.fetches()) {
      cut(flight);
    } else if (const Status status = code(flight, Coding::kEncode); !status.ok()) {
      encoding_failed(flight, status, finished);
    }
  }
}

// Longer ones save little. A multiple of what a place in the ring is.
uint64_t TransferEngine::code_bytes_max(uint64_t page_bytes) const {
  const CoderOptions& options = backend_.coder()->options();
  return std::min(round_up(page_bytes / 10 * 9, options.unit_bytes), options.code_bytes_max);
}

Status TransferEngine::code(Flight& flight, Coding coding) {
  const Action& action = flight.action;
  const CodeRequest request{action.transfer.value,
                            flight.code_place.ticket,
                            backend_.memory_at(action.device_offset),
                            action.bytes,
                            code_of(flight),
                            flight.fetches() ? flight.route.moved_bytes : code_ring_.bytes_of(flight.code_place)};
  const int64_t start = steady_ns();
  Status status =
      coding == Coding::kEncode ? backend_.coder()->submit_encode(request) : backend_.coder()->submit_decode(request);
  work_.copying_ns += steady_ns() - start;
  if (!status.ok()) {
    code_meter_.refused(coding);
    return status;
  }
  code_meter_.began(coding, start);
  flight.coding_since_ns = start;
  return status;
}

void TransferEngine::collect_codes(Finished& finished) {
  if (code_meter_.under_way() == 0) return;
  code_completions_.clear();
  backend_.coder()->poll(code_completions_);
  const int64_t now = steady_ns();
  for (const CodeCompletion& completion : code_completions_) {
    const TransferId id(completion.cookie);
    Flight& flight = flights_.at(id);
    flight.coding_since_ns = 0;
    const Coding coding = completion.encoded ? Coding::kEncode : Coding::kDecode;
    if (completion.encoded && completion.status.ok()) encoded(flight, completion.coded_bytes);
    if (completion.status.ok()) {
      const ElementType type = flight.incompressible ? ElementType::kPlain : completion.type;
      code_meter_.ended(coding, type, flight.action.bytes, flight.route.moved_bytes, now);
    } else {
      code_meter_.failed(coding, now);
    }
    if (!completion.encoded) {
      decoding_ended(flight, completion.status, finished);
    } else if (!completion.status.ok()) {
      encoding_failed(flight, completion.status, finished);
    }
  }
}

void TransferEngine::decode(Flight& flight, Finished& finished) {
  if (const Status status = code(flight, Coding::kDecode); !status.ok()) decoding_ended(flight, status, finished);
}

// Where all fails, what the page holds is below as it was: whoever asks for it has an error, and may ask again.
void TransferEngine::decoding_ended(Flight& flight, const Status& status, Finished& finished) {
  Status ended = status;
  if (is_coders_fault(status)) {
    coder_failed(flight, status);
    if (++flight.decodings_failed < kDecodingsMax) {
      decode(flight, finished);
      return;
    }
    ended = copy_code_down(flight);
    if (ended.ok()) return;
  }
  if (!ended.ok()) {
    flight.status = ended;
    if (ended.code == StatusCode::kInternal) flight.status.code = StatusCode::kUnavailable;
    flight.status.message = text_of(flight) + ": " + ended.message;
  }
  finish_flight(flight.action.transfer, finished);
}

// What the user is told, once: each page that fares so costs time only.
void TransferEngine::coder_failed(const Flight& flight, const Status& status) {
  if (std::exchange(coder_notice_made_, true)) return;
  coder_notice_ = "the coder of pages failed (" + text_of(flight) + ": " + status.message +
                  "). Nothing is lost: what it cannot code moves as it is, what it cannot decode is tried again and "
                  "then decoded by the processor, which is slow. Where code_failures.* of memory_stats() go on "
                  "growing, give compress=\"off\".";
}

// The code lies in the ring, however it came there: from there it goes to RAM, is decoded, and comes up as a page.
Status TransferEngine::copy_code_down(Flight& flight) {
  const uint64_t code_bytes = flight.route.moved_bytes;
  flight.rescue.reset(new (std::nothrow) std::byte[code_bytes + flight.action.bytes]);
  if (flight.rescue == nullptr) {
    return Status::error(StatusCode::kUnavailable, "no memory to decode it by the processor");
  }
  add_rescue_piece(flight, Link::kToHost, flight.rescue.get(), code_bytes);
  return Status::success();
}

// The code is in RAM.
void TransferEngine::rescue(Flight& flight, Finished& finished) {
  const std::span<const std::byte> code(flight.rescue.get(), flight.route.moved_bytes);
  const std::span<std::byte> page(flight.rescue.get() + code.size(), flight.action.bytes);
  give_place_back(flight);
  const Status status = decode_page(code, page);
  if (!status.ok()) {
    decoding_ended(flight, status, finished);
    return;
  }
  add_rescue_piece(flight, Link::kToDevice, page.data(), page.size());
}

void TransferEngine::add_rescue_piece(Flight& flight, Link link, std::byte* host, uint64_t bytes) {
  flight.route.memory = Route::Memory::kArena;  // no slot; that the code came from the disk stays known
  flight.route.hop_count = 1;
  flight.route.hops = {link};
  flight.route.moved_bytes = flight.route.piece_bytes = bytes;
  Piece piece;
  piece.flight = &flight;
  piece.part.bytes = bytes;
  piece.host = host;
  add_piece(piece);
  pump_again_ = true;
}

// A coder that cannot is no reason to fail: the page goes as it is. One that lies, or a lost device, is.
void TransferEngine::encoding_failed(Flight& flight, const Status& status, Finished& finished) {
  if (!is_coders_fault(status)) {
    flight.status = status;
    flight.status.message = text_of(flight) + ": " + status.message;
    finish_flight(flight.action.transfer, finished);
    return;
  }
  coder_failed(flight, status);  // which says nothing of the content: it is coded when it next goes down
  give_place_back(flight);
  cut(flight);
}

// The way of a write-back from here on: of the code, or of the page where there is none.
void TransferEngine::encoded(Flight& flight, uint64_t code_bytes) {
  const uint64_t stored = round_up(code_bytes, backend_.coder()->options().unit_bytes);
  const uint64_t room = code_ring_.bytes_of(flight.code_place);
  if (code_bytes == 0 || stored > room || stored >= flight.action.bytes) {
    flight.incompressible = true;
    give_place_back(flight);
  } else {
    line_of(flight).held_bytes -= room - stored;
    code_ring_.shrink(flight.code_place, stored);
    flight.coded_bytes = stored;
    flight.route.code_is(stored);
  }
  cut(flight);
}

void TransferEngine::give_place_back(Flight& flight) {
  if (!flight.code_place.valid()) return;
  CodeLine& line = line_of(flight);
  TP_ASSERT(line.held_bytes >= code_ring_.bytes_of(flight.code_place));
  line.held_bytes -= code_ring_.bytes_of(flight.code_place);
  code_ring_.give_back(std::exchange(flight.code_place, {}));
  pump_again_ = true;
}

// A code that has left the device whole, for staging buffers, needs its place no longer: a slow disk has it then.
void TransferEngine::code_left_device(Flight& flight) {
  if (--flight.copies_left == 0) give_place_back(flight);
}

// The part of its page that a piece stands for.
uint64_t TransferEngine::content_bytes(const Piece& piece) {
  const Flight& flight = *piece.flight;
  return static_cast<uint64_t>(static_cast<double>(piece.part.bytes) * static_cast<double>(flight.action.bytes) /
                               static_cast<double>(flight.route.moved_bytes));
}

}  // namespace tierpage
