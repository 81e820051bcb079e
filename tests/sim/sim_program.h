// A random program on a SimWorld: several threads that open operators, allocate, free, pin, hint and give up, and the
// model of what every page must contain.
//
// Swarm: each seed draws its own weights and sizes, with some operations off altogether. A *generous* seed promises
// that every thread's operators fit beside each other and that the lower tiers hold everything: there no request may
// fail at all.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "random.h"
#include "sim_world.h"

namespace tierpage::sim {

enum class Deed : uint8_t {
  kOperator,
  kAllocate,
  kFree,
  kSeen,
  kEvict,
  kEvictAll,
  kPrefetch,
  kPin,
  kShrink,
  kHostShrink,
  kReleaseFrames,
  kCount
};

struct Plan {
  WorldConfig world;
  bool generous = false;
  int threads = 2;
  int steps = 400;
  uint64_t live_bytes_max = 0;
  uint64_t region_bytes_max = 0;
  uint64_t held_bytes_max = 0;  // of one thread's open operator
  bool periodic = false;        // threads repeat a fixed list of operators, so that the trace predicts
  double write_share = 0.5;
  double cancel_chance = 0.02;
  double read_chance = 0;    // of each tick: somebody outside reads a page's copy in RAM
  double source_chance = 0;  // of memory asked for outside of operators: its content lies in a source
  std::array<uint32_t, static_cast<size_t>(Deed::kCount)> weights{};
};
Plan draw_plan(uint64_t seed);

struct Outcomes {
  uint64_t grants = 0, waits = 0, failures = 0, out_of_memory = 0, storage = 0, fetches = 0, write_backs = 0,
           source_bytes = 0;
  uint64_t decisions = 0;  // hash of all that the pager ordered (estimate/decision_hash.h)
};

class SimProgram {
 public:
  SimProgram(const Plan& plan, uint64_t seed);
  // Runs everything; throws SimFailure or InternalError. step() tells how far it came.
  Outcomes run();
  int step() const { return step_; }

 private:
  struct ModelPage {
    uint64_t offset = 0, bytes = 0;
    uint64_t version = 0;           // 0: never written, anything may stand there
    uint64_t last_writer = 0;       // kernels
    std::vector<uint64_t> readers;  // since the last writer
    bool sourced = false;           // never written, and the content lies in `source`
    Source source;
  };
  struct ModelRegion {
    RegionId id;
    uint64_t bytes = 0;
    bool seen = false;
    int waiting = 0;  // requests that wait for it: its owner cannot free it
    std::vector<ModelPage> pages;
  };
  struct ModelUse {
    uint64_t serial;  // of the region
    uint64_t first, last;
    bool write;
  };
  enum class Activity : uint8_t { kIdle, kWaiting, kOpen };
  struct Thread {
    SlotId slot;
    StreamId stream = 0;
    Activity activity = Activity::kIdle;
    bool in_operator = false;
    bool permanent = false;
    bool allocating = false, inside = false;
    uint64_t asked_bytes = 0;
    Source source;  // of what was asked for
    uint64_t held_bytes = 0;
    std::vector<ModelUse> uses;   // of the request under way
    std::vector<uint64_t> holds;  // offsets
    uint64_t turn = 0;            // of a periodic program
  };

  void act(Thread& thread, bool finishing);
  void act_idle(Thread& thread);
  void act_open(Thread& thread, bool finishing);
  void open_operator(Thread& thread);
  std::vector<ModelUse> draw_uses(Thread& thread, Random& random);
  void request_pages(Thread& thread, const std::vector<ModelUse>& uses);
  void request_memory(Thread& thread, bool inside);
  void settle_request(Thread& thread, Outcome outcome);
  void granted(Thread& thread);
  void granted_memory(Thread& thread);
  void failed(Thread& thread);
  void end_operator(Thread& thread);
  void run_kernel(Thread& thread, const std::vector<ModelUse>& uses);
  void free_random();
  void free_region(uint64_t serial);
  uint64_t random_region(Random& random);
  uint64_t touched_bytes(const ModelUse& use) const;
  void disturb(Deed deed);
  void check_contents() const;
  void finish_all();
  void run_until_quiet();
  void check_overflow() const;
  void read_everything();
  void free_everything();

  Plan plan_;
  Random random_;
  SimWorld world_;
  std::vector<Thread> threads_;
  std::map<uint64_t, ModelRegion> regions_;  // live ones, by serial
  uint64_t next_serial_ = 1;
  uint64_t next_version_ = 1;
  uint64_t live_bytes_ = 0;
  int step_ = 0;
  Outcomes outcomes_;
};

}  // namespace tierpage::sim
