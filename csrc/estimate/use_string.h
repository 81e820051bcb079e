// A program written out as the core gets it: which regions each operator needs at once, what is new, what is freed.
//
// The replay on the modelled machine (machine.h), the page replays (page_replay.h) and the look at the predictor
// (prediction_report.h) take the same decisions about it: operators over lists are split into runs of the same length,
// the repeating step runs as often. A *life* is a region from its allocation until it is freed; an id that is used
// again afterwards is another life. Everything after now is known here: that is what the perfect knowledge consists of.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/trace.h"
#include "estimate/machine.h"
#include "estimate/program.h"

namespace tierpage::estimate {

inline constexpr uint32_t kNoRequest = ~0u;

struct RegionUse {
  uint32_t life = 0;
  bool write = false;
  bool fresh = false;          // allocated here: written, and nothing to fetch
  uint32_t next = kNoRequest;  // the request that uses the life next
};

enum class RequestKind : uint8_t { kOperator, kAllocate, kFree, kStepEnd };

struct Request {
  RequestKind kind = RequestKind::kStepEnd;
  uint32_t name = 0;   // of the operator
  uint32_t begin = 0;  // its uses: [begin, end)
  uint32_t end = 0;
  uint32_t life = 0;  // kFree
};

struct Life {
  uint64_t bytes = 0;           // in whole granules
  uint32_t freed = kNoRequest;  // the request that frees it
};

struct UseString {
  std::vector<Life> lives;
  std::vector<RegionUse> uses;
  std::vector<Request> requests;
  uint32_t step_count = 0;
};

// Writes out the warm-up and `options.loops` repetitions.
UseString write_out(const Program& program, const ReplayOptions& options);

// Makes the last `steps` steps of a program that has no loop the one that repeats. kInvalidArgument where there are not
// so many, or where they do not leave just those ids alive, with those sizes, that they found.
Status repeat_last_steps(Program* program, size_t steps);

// Appends requests to a trace, as Pager does: the same keys, in the same order.
class TraceFeed {
 public:
  TraceFeed(const UseString& string, Trace& trace) : string_(string), trace_(trace), keys_(string.lives.size()) {}
  // `after_use` is called after each use.
  template <class AfterUse>
  void append(const Request& request, AfterUse&& after_use) {
    bool opens = begin(request);
    for (uint32_t u = request.begin; u < request.end; ++u, opens = false) {
      append_use(string_.uses[u], opens);
      after_use();
    }
  }
  void append(const Request& request) {
    append(request, [] {});
  }

 private:
  bool begin(const Request& request);
  void append_use(const RegionUse& use, bool opens);

  const UseString& string_;
  Trace& trace_;
  std::vector<KeyId> keys_;  // by life
};

}  // namespace tierpage::estimate
