// A recorded program: the order in which operators use memory, and how long each runs. What the replay (machine.h)
// runs.
//
// Text, one record a line, written by bench/record_program.py:
//   tierpage-program 1
//   A <id> <bytes>                                   memory allocated outside any operator
//   O <name> <us> <id>r <id>w ... +<id>:<bytes> ...  an operator: what it reads and writes, what it allocates inside
//   O* <name> <us> <uses> ; <uses> ; ...             an operator over lists: the uses of each index
//   F <id>                                           memory freed
//   S                                                the program waits for the device: the end of a step
//   L                                                from here to the end is one step that may be repeated for ever
//   # ...                                            a comment
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "core/model/status.h"

namespace tierpage::estimate {

struct ProgramUse {
  uint32_t id = 0;
  bool write = false;
};

struct ProgramAllocation {
  uint32_t id = 0;
  uint64_t bytes = 0;
};

enum class LineKind : uint8_t { kAllocate, kOperator, kFree, kSynchronize };

struct ProgramLine {
  LineKind kind = LineKind::kSynchronize;
  uint32_t name = 0;  // index in Program::names
  double microseconds = 0;
  std::vector<ProgramUse> uses;
  std::vector<ProgramAllocation> fresh;  // kAllocate: the one; kOperator: inside
  std::vector<uint32_t> group_ends;      // an operator over lists: ends of each index's uses; else empty
  uint32_t freed = 0;                    // kFree
};

struct Program {
  std::vector<std::string> names;
  std::vector<ProgramLine> lines;
  size_t loop_begin = 0;  // first line of the step that repeats; lines.size(): none
  uint32_t id_count = 0;

  double compute_microseconds(size_t begin, size_t end) const;
};

// kInvalidArgument with the line's number where the text is not such a program: ids in use twice or not at all,
// numbers out of range, a loop that does not free what it allocates.
Status read_program(std::istream& text, Program* program);

}  // namespace tierpage::estimate
