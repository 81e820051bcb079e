// Whether content that the program rewrites in every recurrence is coded on its way down.
//
// The problem. What is never written again is coded once and saves at each fetch. What is rewritten is coded each time:
// that pays where the program waits for a link that would carry less, and where the coder keeps up with that link.
//
// Method. Sums of what links and coders did come in as events; a window of them is a whole recurrence at least, since a
// phase of it says little. In each window:
//   link bound  the device worked for less time than the window took, or a link would have no time left for as much
//               uncoded (its busy time, times content by bytes);
//   cheaper     coder and link work side by side, so a byte takes what the slower of both takes: together, down and up,
//               that is less than the links take for it uncoded.
// Coded while both hold. A program that codes have made bound by its kernels looks as if it never needed them: so it
// takes several windows in a row to stop, and twice as many each time that it turns out to have been wrong.
//
// Until something is measured, rewritten content is coded.
//
// Invariants (check_invariants): fewer windows in a row have said no than it takes to stop; kPatience <= that <=
//   kPatienceMax.
#pragma once

#include <cstdint>

namespace tierpage {

// Since the start.
struct CodeTraffic {
  struct Way {  // a link between HOST and DEVICE
    uint64_t busy_ns = 0;
    uint64_t bytes = 0;
    uint64_t content_bytes = 0;  // of the pages that these bytes are
  };
  struct Coder {
    uint64_t busy_ns = 0;
    uint64_t content_bytes = 0;
    uint64_t coded_bytes = 0;
  };
  uint64_t now_ns = 0;
  Way up, down;
  Coder encode, decode;
};

class CodeEconomy {
 public:
  static constexpr uint64_t kPatience = 4;
  static constexpr uint64_t kPatienceMax = 256;
  static constexpr uint64_t kRemembered = 64;  // windows for which what the coder did last is still believed

  // uses: of the trace. period: of the recurrence, in uses. compute_ns: for which the device works in each; where that
  // is 0, it is not known, and nothing is decided.
  void measured(const CodeTraffic& traffic, uint64_t uses, uint64_t period, double compute_ns);
  bool codes_rewritten() const { return codes_; }
  void check_invariants() const;

 private:
  struct PerByte {  // nanoseconds for a byte of content; 0: not known
    double link = 0;
    double coder = 0;
    double ratio = 1;
    double plain() const { return link; }
    double coded() const { return coder > link * ratio ? coder : link * ratio; }
  };
  bool link_bound(const CodeTraffic& traffic, double compute_ns) const;
  bool cheaper() const;
  static void learn(PerByte& known, const CodeTraffic::Way& now, const CodeTraffic::Way& before,
                    const CodeTraffic::Coder& coder, const CodeTraffic::Coder& coder_before);

  CodeTraffic window_;  // as it began
  uint64_t window_uses_ = 0;
  bool begun_ = false;
  PerByte down_, up_;
  uint64_t unmeasured_ = 0;  // windows in a row in which the coder did nothing
  bool codes_ = true;
  uint64_t refusals_ = 0;  // windows in a row that said no
  uint64_t patience_ = kPatience;
};

}  // namespace tierpage
