// A simulated machine under a Pager: device frames, RAM and disk that hold version numbers instead of bytes, streams
// with kernels that finish late, and an executor of the pager's actions with random latency, order and faults.
//
// Method. Every write to a page makes a new version. A kernel's writes land when the kernel *finishes*, and its reads
// are compared at that moment; a page that was unmapped, copied down or handed out too early therefore shows up as a
// wrong version or a missing mapping. Copies take their source at a random moment and check at their end that it did
// not change meanwhile. Whatever is wrong is thrown as SimFailure.
//
// Calls on the device's address space (create, map, unmap, release) take place in the order of the actions; copies
// finish in any order; completions reach the pager later still.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/pager/pager.h"
#include "estimate/decision_hash.h"
#include "random.h"

namespace tierpage::sim {

class SimFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw SimFailure(what);
}

struct Faults {
  double read = 0;    // a fetch or a stage fails
  double write = 0;   // a write-back or a spill fails
  double create = 0;  // the device refuses a new frame
  double map = 0;     // mapping fails
  double growth = 0;  // the RAM tier stops growing
  double record = 0;  // a fence cannot be recorded
};

// With config.pager.compress a write-back takes fewer units for some pages: numbers that nothing else has, behind which
// the content is looked up when they are all read again in order.
struct WorldConfig {
  PagerConfig pager;
  Faults faults;
  uint64_t latency_max = 8;  // ticks of one step of an action
  uint64_t kernel_max = 20;  // ticks of a kernel
  uint64_t growth_max = 40;  // ticks until RAM has grown
  uint64_t streams = 2;
};

struct KernelAccess {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  bool write = false;
  uint64_t version = 0;  // write: the new content; read: the content expected, 0: anything
  Source source = {};    // read with version 0: what the page has from there is expected
  bool from_source = false;
};

class SimWorld {
 public:
  static constexpr uint64_t kUnitBytes = 32;  // contents are kept per unit, the smallest span

  SimWorld(const WorldConfig& config, uint64_t seed);

  Pager& pager() { return pager_; }
  const Pager& pager() const { return pager_; }
  uint64_t now() const { return now_; }
  // To be called after every event given to the pager: checks the invariants, plans (or leaves that to a later event
  // of the same tick, as the engine does), takes the actions.
  void settle();
  // One tick of the clock: kernels finish, actions proceed, completions are delivered.
  void advance();
  // A kernel on `stream`, which begins after the kernels `after` have finished. Returns its number.
  uint64_t launch(StreamId stream, std::vector<KernelAccess> accesses, const std::vector<uint64_t>& after);
  Fence last_fence(StreamId stream) const { return {stream, launched_[stream]}; }
  uint64_t last_kernel(StreamId stream) const { return queued_[stream].empty() ? 0 : queued_[stream].back(); }

  void hold(uint64_t offset) { ++holds_[offset]; }
  void release(uint64_t offset) {
    if (--holds_[offset] == 0) holds_.erase(offset);
  }
  void stop_faults() { config_.faults = Faults{}; }
  void set_device_capacity(uint64_t bytes);
  bool quiet() const;  // nothing is under way
  // Every copy of `page` that the pager calls valid holds `version`; the device's only if no kernel is unfinished.
  void check_copies(const Page& page, uint64_t version) const;
  // A place in the sources with that many bytes. Each of its units holds a version of its own, for ever.
  Source make_source(uint64_t bytes);
  void check_source(const Page& page, const Source& part) const;  // like check_copies, of content that nobody wrote
  // Somebody outside reads the page's copy in RAM for some ticks, if it has one at rest; it must not change meanwhile.
  void read_outside(PageId page);
  void require_mapped(const Page& page) const;
  uint64_t created_bytes() const { return created_bytes_; }
  uint64_t decisions() const { return decisions_.value(); }

 private:
  using Units = std::vector<uint64_t>;
  struct Frame {
    bool created = false;
    bool overflow = false;  // its memory is not the device's
    uint64_t mapped_at = kNowhere;
    uint64_t bytes = 0;
    Units units;
  };
  struct Kernel {
    StreamId stream = 0;
    uint64_t ready = 0;
    bool finished = false;
    std::vector<KernelAccess> accesses;
    std::vector<uint64_t> after;
  };
  struct Job {
    Action action;
    uint64_t ready = 0;
    uint64_t capacity = 0;  // device capacity when the action was given
    bool started = false;
    Units source;
  };
  struct Completion {
    uint64_t ready = 0;
    TransferId transfer;
    TransferResult result;
  };
  struct Reading {
    uint64_t ready = 0;
    PageId page;
    SpanList spans;
    Units units;
  };
  static constexpr uint64_t kNowhere = ~uint64_t{0};

  void plan();
  void take_actions();
  void accept(Action& action);
  void run_kernels();
  void finish_kernel(Kernel& kernel);
  void run_device_lane();
  bool perform_map(Job& job);
  void run_copies();
  void finish_copy(Job& job);
  void deliver();
  void deliver_records();
  void end_readings();
  void grow_host();
  void complete(TransferId transfer, TransferResult result);
  uint64_t soon() { return now_ + random_.below(config_.latency_max + 1); }
  Frame& frame(FrameId id);
  const Frame& frame_at(uint64_t offset) const;
  Units read_source(const Job& job) const;
  Units read_spans(const Units& tier, const SpanList& spans) const;
  Units read_stored(const Units& tier, const SpanList& spans, uint64_t stored_bytes) const;
  Units encode(const Units& content);
  Units decode(const Units& stored, uint64_t page_bytes) const;
  void write_spans(Units& tier, const SpanList& spans, const Units& units, size_t count);
  static uint64_t unit_of(uint64_t version, size_t index) { return version * 1024 + index; }
  static Units units_of(const Source& part, uint64_t bytes);
  void compare_copies(const Page& page, const Units& expected) const;

  WorldConfig config_;
  Random random_;
  std::map<uint64_t, Units> codes_;  // content by the first number of its code
  uint64_t next_code_ = uint64_t{1} << 63;
  Pager pager_;
  estimate::DecisionHash decisions_;
  uint64_t now_ = 0;
  std::vector<Frame> frames_;
  std::map<uint64_t, FrameId> mapped_;  // by offset in the range
  uint64_t created_bytes_ = 0;
  uint64_t device_capacity_;
  Units host_, nvme_;
  uint64_t host_space_ = 0;
  uint64_t host_growth_at_ = 0;
  bool host_done_ = false;
  uint64_t garbage_ = 0;
  uint64_t source_end_ = 7;  // not aligned to anything
  std::vector<Kernel> kernels_;
  std::vector<std::deque<uint64_t>> queued_;  // by stream: unfinished kernels
  std::vector<uint64_t> launched_, done_;     // by stream: sequences
  std::map<uint64_t, int> busy_;              // by offset: unfinished kernels
  std::map<uint64_t, int> holds_;             // by offset: open operators
  std::deque<Job> device_lane_;
  std::vector<Job> copies_;
  std::vector<Completion> completions_;
  std::vector<Reading> readings_;
  std::vector<Fence> watches_;
  struct Record {
    Fence fence;
    uint64_t ready = 0;
    bool recorded = false;
  };
  std::vector<Record> records_;  // fences asked for
};

}  // namespace tierpage::sim
