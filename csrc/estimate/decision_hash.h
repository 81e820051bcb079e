// One number over everything that a pager ordered, in its order: equal numbers mean equal decisions. Tests compare it
// with the numbers in tests/sim/decisions.txt, so that a change which should decide nothing new shows if it does.
//
// FNV-1a, 64 bits (Fowler, Noll, Vo; RFC 9923).
#pragma once

#include <cstdint>

#include "core/pager/pager.h"

namespace tierpage::estimate {

class DecisionHash {
 public:
  void add(const Action& action) {
    add(static_cast<uint64_t>(action.kind));
    add(action.transfer.value);
    add(action.frame.value);
    add(uint64_t{action.create_frame});
    add(action.device_offset);
    add(action.bytes);
    add(static_cast<uint64_t>(action.lower));
    add(action.host);
    add(action.nvme);
    add(uint64_t{action.sourced});
    add(action.source.offset);
    add(action.source.bytes);
    add(uint64_t{action.fence.stream});
    add(action.fence.sequence);
    add(uint64_t{action.urgent});
  }
  uint64_t value() const { return value_; }

 private:
  void add(uint64_t number) {
    for (int byte = 0; byte < 8; ++byte) {
      value_ ^= number >> 8 * byte & 0xff;
      value_ *= 0x100000001b3ull;
    }
  }
  void add(const SpanList& spans) {
    add(uint64_t{spans.size()});
    for (const Span& span : spans) {
      add(span.offset);
      add(span.bytes);
    }
  }

  uint64_t value_ = 0xcbf29ce484222325ull;
};

}  // namespace tierpage::estimate
