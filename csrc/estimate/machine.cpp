// The clockwork of the replay. Time is in microseconds.
#include "estimate/machine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <unordered_map>

#include "core/model/link_limits.h"
#include "estimate/decision_hash.h"

namespace tierpage::estimate {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr uint64_t kCodedUnit = 64 * kKiB;  // as the engine stores codes of pages of 1 MiB and more

uint64_t hash_of(uint32_t name) { return (name + 1) * 0x9e3779b97f4a7c15ull; }

// A link that carries one piece after the other. Pieces that were submitted keep their order.
class Link {
 public:
  struct Piece {
    TransferId transfer;
    double bytes = 0;
    bool urgent = false;
    bool last = false;  // of its transfer
  };
  void add(TransferId transfer, uint64_t bytes, uint64_t piece_bytes, bool urgent) {
    for (uint64_t done = 0; done < bytes; done += piece_bytes) {
      const uint64_t part = std::min(piece_bytes, bytes - done);
      const Piece piece{transfer, static_cast<double>(part), urgent, done + part == bytes};
      auto place = queue_.end();
      if (urgent) {
        const size_t fixed = std::min(queue_.size(), kLimitOfModel.submitted);
        const auto movable = queue_.begin() + static_cast<std::ptrdiff_t>(fixed);
        place = std::find_if(movable, queue_.end(), [](const Piece& other) { return !other.urgent; });
      }
      queue_.insert(place, piece);
    }
  }
  bool busy() const { return !queue_.empty(); }
  double left() const { return queue_.front().bytes; }
  // Moves on by `bytes`; the transfer that ended, if one did.
  TransferId carry(double bytes) {
    moved_ += bytes;
    queue_.front().bytes -= bytes;
    if (queue_.front().bytes > 0.5) return {};
    const Piece done = queue_.front();
    queue_.pop_front();
    return done.last ? done.transfer : TransferId{};
  }
  double busy_us = 0;
  double moved() const { return moved_; }

 private:
  std::deque<Piece> queue_;
  double moved_ = 0;
};

class Machine {
 public:
  Machine(const Program& program, const ReplayOptions& options)
      : program_(program), options_(options), rates_(options.rates), pager_(options.pager), slot_(pager_.add_slot()) {
    regions_.resize(program.id_count);
    run_bytes_max_ = options.list_run_bytes_max != 0 ? options.list_run_bytes_max : options.pager.device_bytes_max / 16;
    pager_.host_space_ready(options.pager.host_bytes_max, false);
    const double content = options.pager.compress ? std::min(rates_.code_ratio, 1.0) : 1.0;  // plans count pages
    pager_.foresight().set_fetch_rate(rates_.host_to_device * rates_.duplex_factor / content / 1e6);
  }

  Status run(std::vector<StepReport>* reports) {
    step_start_ = Totals{};
    for (size_t i = 0; i < program_.loop_begin; ++i) run_line(program_.lines[i], reports);
    for (int loop = 0; loop < options_.loops && program_.loop_begin < program_.lines.size(); ++loop) {
      for (size_t i = program_.loop_begin; i < program_.lines.size(); ++i) run_line(program_.lines[i], reports);
    }
    return failure_;
  }

 private:
  struct Totals {
    double time = 0, compute = 0, fault = 0, allocate = 0, up_busy = 0, down_busy = 0;
    uint64_t up = 0, down = 0, saved_up = 0, saved_down = 0, disk_read = 0, disk_write = 0, faults = 0, maps = 0,
             created = 0, uses = 0, predicted = 0, ahead = 0, on_demand = 0;
  };

  // --- the program thread ----------------------------------------------------------------------------------------
  void run_line(const ProgramLine& line, std::vector<StepReport>* reports) {
    if (!failure_.ok()) return;
    switch (line.kind) {
      case LineKind::kAllocate: allocate(line.fresh[0], false); break;
      case LineKind::kFree: pager_.free_region(regions_[line.freed], {}); break;
      case LineKind::kOperator:
        if (line.group_ends.size() > 1) run_list(line);
        else run_operator(line, 0, line.uses.size(), line.microseconds);
        break;
      case LineKind::kSynchronize:
        advance_to(std::max(now_, kernels_end_));
        reports->push_back(report());
        break;
    }
  }

  void run_operator(const ProgramLine& line, size_t first, size_t last, double microseconds) {
    std::vector<Use> uses;
    for (size_t i = first; i < last; ++i) {
      const RegionId region = regions_[line.uses[i].id];
      uses.push_back({region, 0, pager_.memory().region(region).bytes_asked - 1,
                      line.uses[i].write ? AccessMode::kWrite : AccessMode::kRead});
      pager_.mark_seen(region);
    }
    if (!uses.empty()) {
      pager_.begin_op(slot_, hash_of(line.name), program_.names[line.name].c_str(), uses);
      wait(totals_.fault);
    }
    for (const ProgramAllocation& fresh : line.fresh) allocate(fresh, true);
    if (!failure_.ok()) return;
    kernels_end_ = std::max(kernels_end_, now_) + microseconds;
    totals_.compute += microseconds;
    kernel_ends_.push_back(kernels_end_);
    if (options_.timed && pager_.wants_times())
      timed_.push_back({kernels_end_, pager_.requests().op_position(slot_), microseconds});
    pager_.end_op(slot_, Fence{0, kernel_ends_.size()});
    for (const ProgramAllocation& fresh : line.fresh) pager_.mark_seen(regions_[fresh.id]);
    double resume = now_ + rates_.launch_us;
    if (kernel_ends_.size() > rates_.launches_ahead_max) {
      resume = std::max(resume, kernel_ends_[kernel_ends_.size() - rates_.launches_ahead_max]);
    }
    wake_pager(now_);
    advance_to(std::max(resume, kernels_end_ - rates_.ahead_us_max));
  }

  // As the torch library splits it: as many indices as fit into a run.
  void run_list(const ProgramLine& line) {
    uint64_t total = 0;
    for (const ProgramUse& use : line.uses) total += bytes_of(use.id);
    size_t first = 0, begin = 0;
    uint64_t run = 0;
    for (size_t group = 0; group < line.group_ends.size(); ++group) {
      uint64_t bytes = 0;
      for (size_t i = begin; i < line.group_ends[group]; ++i) bytes += bytes_of(line.uses[i].id);
      if (run > 0 && run + bytes > run_bytes_max_) {
        run_operator(line, first, begin, line.microseconds * static_cast<double>(run) / static_cast<double>(total));
        first = begin;
        run = 0;
      }
      run += bytes;
      begin = line.group_ends[group];
    }
    run_operator(line, first, line.uses.size(),
                 line.microseconds * static_cast<double>(run) / static_cast<double>(total));
  }

  uint64_t bytes_of(uint32_t id) const {
    return round_up(pager_.memory().region(regions_[id]).bytes_asked, options_.pager.granule_bytes);
  }

  void allocate(const ProgramAllocation& allocation, bool inside) {
    if (!failure_.ok()) return;
    pager_.allocate(slot_, {allocation.bytes, 0, 0, inside});
    wait(totals_.allocate);
    if (!failure_.ok()) return;
    regions_[allocation.id] = pager_.allocated(slot_);
    if (!inside) pager_.mark_seen(regions_[allocation.id]);
  }

  void wait(double& stall) {
    if (pager_.outcome(slot_) == Outcome::kWait) {
      const double start = now_;
      wake_pager(now_);
      while (pager_.outcome(slot_) == Outcome::kWait) {
        if (!advance_once(kNever)) {
          failure_ = Status::error(StatusCode::kInternal, "the replay hangs: " + pager_.memory().tier_table());
          return;
        }
      }
      advance_to(now_ + rates_.wake_us);
      stall += now_ - start;
    }
    if (pager_.outcome(slot_) == Outcome::kFailed) failure_ = pager_.failure(slot_);
  }

  // --- the clock -------------------------------------------------------------------------------------------------
  void wake_pager(double when) {
    if (!pager_.has_actions() && !pager_.wants_planning()) return;
    const bool sleeps = round_at_ == kNever && !up_.busy() && !down_.busy() && !disk_.busy() && codings_.empty();
    round_at_ = std::min(round_at_, std::max(when + (sleeps ? rates_.rouse_us : 0), pager_free_at_));
  }

  void advance_to(double time) {
    while (advance_once(time)) {
    }
    move_links(time - now_);
    now_ = std::max(now_, time);
  }

  double rate(const Link& link) const {
    if (&link == &disk_) return (disk_reads_ ? rates_.disk_read : rates_.disk_write) / 1e6;
    const bool both = up_.busy() && down_.busy();
    return (&link == &up_ ? rates_.host_to_device : rates_.device_to_host) * (both ? rates_.duplex_factor : 1.0) / 1e6;
  }

  // Goes to the next thing that happens, at most to `limit`; false if nothing does until then.
  bool advance_once(double limit) {
    double next = round_at_;
    for (const Link* link : {&up_, &down_, &disk_}) {
      if (link->busy()) next = std::min(next, now_ + link->left() / rate(*link));
    }
    if (!fence_watches_.empty()) next = std::min(next, std::max(now_, fence_watches_.front().first));
    if (!codings_.empty()) next = std::min(next, std::max(now_, codings_.front().end));
    if (next > limit || next == kNever) return false;
    move_links(next - now_);
    now_ = std::max(now_, next);
    while (!fence_watches_.empty() && fence_watches_.front().first <= now_) {
      finished_fences_.push_back(fence_watches_.front().second);
      fence_watches_.pop_front();
      look_soon();
    }
    while (!codings_.empty() && codings_.front().end <= now_) end_coding();
    if (round_at_ <= now_) round();
    return true;
  }

  // Times of operators that have ended, as far as the pager asked for them.
  void tell_times() {
    for (; !timed_.empty() && timed_.front().end <= now_; timed_.pop_front()) {
      if (timed_.front().position != Trace::kNever)
        pager_.foresight().op_timed(timed_.front().position, timed_.front().microseconds);
    }
  }

  void look_soon() { round_at_ = std::min(round_at_, std::max(now_ + rates_.look_us, pager_free_at_)); }

  void move_links(double microseconds) {
    if (microseconds <= 0) return;
    const double up_bytes = rate(up_) * microseconds, down_bytes = rate(down_) * microseconds;
    const double disk_bytes = rate(disk_) * microseconds;
    const bool up_busy = up_.busy(), down_busy = down_.busy(), disk_busy = disk_.busy();
    if (up_busy) carry(up_, up_bytes, microseconds);
    if (down_busy) carry(down_, down_bytes, microseconds);
    if (disk_busy) carry(disk_, disk_bytes, microseconds);
  }

  void carry(Link& link, double bytes, double microseconds) {
    link.busy_us += microseconds;
    const TransferId done = link.carry(bytes);
    if (!done.valid()) return;
    const auto decoded = decodes_.find(done.value);
    if (decoded == decodes_.end()) {
      finished_.push_back(done);
      look_soon();
    } else {  // the pager thread sees that the code is there, and has it decoded
      begin_coding(now_ + microseconds + rates_.look_us, rates_.decode, decoded->second);
      decodes_.erase(decoded);
    }
  }

  // --- codes -----------------------------------------------------------------------------------------------------
  void begin_coding(double start, double rate, const Action& action) {
    const double end = start + static_cast<double>(action.bytes) / rate * 1e6;
    const auto place =
        std::find_if(codings_.begin(), codings_.end(), [end](const Coding& one) { return one.end > end; });
    codings_.insert(place, {start, end, action});
  }

  static void count(CodeTraffic::Coder& coder, double microseconds, uint64_t content, uint64_t code) {
    coder.busy_ns += static_cast<uint64_t>(microseconds * 1e3);
    coder.content_bytes += content;
    coder.coded_bytes += code;
  }

  // What is saved on the way from and to the disk counts as the bus's: where there is a disk, its room decides.
  void tell_traffic() {
    traffic_.now_ns = static_cast<uint64_t>(now_ * 1e3);
    const auto way = [](const Link& link, uint64_t saved) {
      const auto bytes = static_cast<uint64_t>(link.moved());
      return CodeTraffic::Way{static_cast<uint64_t>(link.busy_us * 1e3), bytes, bytes + saved};
    };
    traffic_.up = way(up_, pager_.stats().saved_bytes_up);
    traffic_.down = way(down_, pager_.stats().saved_bytes_down);
    pager_.foresight().note_code_traffic(traffic_);
  }

  // A page that is decoded has arrived; one that is encoded sets out, as long as its code is.
  void end_coding() {
    const Action action = std::move(codings_.front().action);
    const double microseconds = codings_.front().end - codings_.front().start;
    codings_.pop_front();
    if (action.kind == ActionKind::kFetch) {
      count(traffic_.decode, microseconds, action.bytes, stored_bytes_of(action));
      finished_.push_back(action.transfer);
      look_soon();
      return;
    }
    const double code = std::ceil(rates_.code_ratio * static_cast<double>(action.bytes));
    const uint64_t stored = std::min(round_up(static_cast<uint64_t>(code), kCodedUnit), action.bytes);
    TransferResult& result = coded_[action.transfer.value];
    count(traffic_.encode, microseconds, action.bytes, stored);
    result.incompressible = stored == action.bytes;
    result.stored_bytes = result.incompressible ? 0 : stored;
    write_back(action, stored);
  }

  void write_back(const Action& action, uint64_t stored) {
    link_for(action, stored, down_, false).add(action.transfer, stored, rates_.piece_bytes, action.urgent);
    totals_.down += stored;
  }

  TransferResult result_of(TransferId transfer) {
    const auto found = coded_.find(transfer.value);
    if (found == coded_.end()) return {};
    const TransferResult result = found->second;
    coded_.erase(found);
    return result;
  }

  // --- the pager thread ------------------------------------------------------------------------------------------
  void round() {
    tell_times();
    round_at_ = kNever;
    for (const Fence& fence : finished_fences_) pager_.fence_done(fence);
    finished_fences_.clear();
    std::vector<TransferId> finished;
    finished.swap(finished_);
    for (const TransferId transfer : finished) pager_.transfer_done(transfer, result_of(transfer));
    if (options_.pager.compress) tell_traffic();
    if (pager_.wants_planning()) pager_.plan();
    if (options_.check) pager_.check_invariants();
    std::vector<Action> actions;
    pager_.take_actions(actions);
    double time = now_;
    for (const Action& action : actions) {
      decisions_.add(action);
      time = execute(action, time);
    }
    pager_free_at_ = time;
    if (!finished_.empty() || pager_.has_actions() || pager_.wants_planning()) round_at_ = time;
  }

  // Copies are given to the links at once although the pager thread gets to them a little later: microseconds.
  double execute(const Action& action, double time) {
    const uint64_t stored = stored_bytes_of(action);
    switch (action.kind) {
      case ActionKind::kReleaseFrame: return time + rates_.unmap_us;
      case ActionKind::kWatchFence: {
        const double end = kernel_ends_[action.fence.sequence - 1];
        const auto place = std::find_if(fence_watches_.begin(), fence_watches_.end(),
                                        [end](const auto& other) { return other.first > end; });
        fence_watches_.insert(place, {end, action.fence});
        return time;
      }
      case ActionKind::kRecordFence:  // each operator here ends with a fence of its own
        return time;
      case ActionKind::kMap:
        ++totals_.maps;
        totals_.created += action.create_frame;
        finished_.push_back(action.transfer);
        return time + map_us(action);
      case ActionKind::kUnmap: finished_.push_back(action.transfer); return time + rates_.unmap_us;
      case ActionKind::kFetch:
        ++totals_.maps;
        totals_.created += action.create_frame;
        if (stored < action.bytes) decodes_.emplace(action.transfer.value, action);
        link_for(action, stored, up_, true).add(action.transfer, stored, rates_.piece_bytes, action.urgent);
        totals_.up += stored;
        return time + map_us(action) + submit_us(stored);
      case ActionKind::kWriteBack:
        if (action.code) begin_coding(time + rates_.look_us, rates_.encode, action);
        else write_back(action, stored);
        return time + submit_us(stored);
      case ActionKind::kSpill:
      case ActionKind::kStage:
        disk_reads_ = action.kind == ActionKind::kStage;
        (disk_reads_ ? totals_.disk_read : totals_.disk_write) += stored;
        disk_.add(action.transfer, stored, rates_.piece_bytes, false);
        return time;
    }
    return time;
  }

  double map_us(const Action& action) const { return rates_.map_us + (action.create_frame ? rates_.create_us : 0); }

  double submit_us(uint64_t bytes) const {
    return rates_.submit_us * static_cast<double>((bytes + rates_.piece_bytes - 1) / rates_.piece_bytes);
  }

  // What comes from or goes to the disk is as slow as the disk; its way over the bus hides behind that.
  Link& link_for(const Action& action, uint64_t stored, Link& bus, bool read) {
    if (action.lower == Tier::kHost) return bus;
    disk_reads_ = read;
    (read ? totals_.disk_read : totals_.disk_write) += stored;
    return disk_;
  }

  StepReport report() {
    totals_.time = now_;
    totals_.up_busy = up_.busy_us;
    totals_.down_busy = down_.busy_us;
    totals_.saved_up = pager_.stats().saved_bytes_up;
    totals_.saved_down = pager_.stats().saved_bytes_down;
    totals_.faults = pager_.stats().faults;
    totals_.uses = pager_.foresight().trace().end();
    totals_.predicted = pager_.foresight().predictor().predicted_uses();
    totals_.ahead = pager_.stats().prefetch_issued;
    totals_.on_demand = pager_.stats().fault_pages;
    StepReport step;
    const Totals& a = step_start_;
    const Totals& b = totals_;
    step.seconds = (b.time - a.time) / 1e6;
    step.compute_seconds = (b.compute - a.compute) / 1e6;
    step.fault_seconds = (b.fault - a.fault) / 1e6;
    step.allocate_seconds = (b.allocate - a.allocate) / 1e6;
    step.to_device_busy_seconds = (b.up_busy - a.up_busy) / 1e6;
    step.to_host_busy_seconds = (b.down_busy - a.down_busy) / 1e6;
    step.to_device_bytes = b.up - a.up;
    step.to_host_bytes = b.down - a.down;
    step.saved_up_bytes = b.saved_up - a.saved_up;
    step.saved_down_bytes = b.saved_down - a.saved_down;
    step.disk_read_bytes = b.disk_read - a.disk_read;
    step.disk_write_bytes = b.disk_write - a.disk_write;
    step.faults = b.faults - a.faults;
    step.decisions = decisions_.value();
    step.maps = b.maps - a.maps;
    step.frames_created = b.created - a.created;
    step.uses = b.uses - a.uses;
    step.uses_predicted = b.predicted - a.predicted;
    step.pages_ahead = b.ahead - a.ahead;
    step.pages_on_demand = b.on_demand - a.on_demand;
    step_start_ = totals_;
    return step;
  }

  const Program& program_;
  const ReplayOptions& options_;
  const MachineRates& rates_;
  Pager pager_;
  DecisionHash decisions_;
  SlotId slot_;
  uint64_t run_bytes_max_ = 0;
  std::vector<RegionId> regions_;  // by the program's id
  Status failure_;
  double now_ = 0;
  double kernels_end_ = 0;           // when the last launched kernel ends
  std::vector<double> kernel_ends_;  // by sequence - 1
  struct Timed {
    double end = 0;
    uint64_t position = 0;  // in the pager's trace
    double microseconds = 0;
  };
  std::deque<Timed> timed_;
  Link up_, down_, disk_;
  bool disk_reads_ = true;
  std::deque<std::pair<double, Fence>> fence_watches_;  // by time
  std::vector<Fence> finished_fences_;
  struct Coding {
    double start = 0;
    double end = 0;
    Action action;
  };
  std::deque<Coding> codings_;                          // by end
  CodeTraffic traffic_;                                 // of the coders, at any time
  std::unordered_map<uint64_t, Action> decodes_;        // coded pages on their way up, by transfer
  std::unordered_map<uint64_t, TransferResult> coded_;  // and down
  std::vector<TransferId> finished_;                    // seen at the pager thread's next round
  double round_at_ = kNever;
  double pager_free_at_ = 0;
  Totals totals_, step_start_;
};

}  // namespace

Status replay(const Program& program, const ReplayOptions& options, std::vector<StepReport>* reports) {
  return Machine(program, options).run(reports);
}

}  // namespace tierpage::estimate
