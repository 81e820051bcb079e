// Our place among the handlers of SIGSEGV. Others come and go as they like: faulthandler, crash reporters, debuggers.
// Ours has to see a fault first, because the others take each for the end of the process; what is not ours goes on to
// them.
#pragma once

#include <signal.h>

#include <cstdint>

namespace tierpage {

using FaultHandler = void (*)(int, siginfo_t*, void*);

// Puts `handler` above whatever is there now. Any thread; there is one such handler in a process.
void put_on_top(FaultHandler handler);
// Puts it there again, once it was; one system call as a rule, two where somebody came between.
void stay_on_top();

// To whom was there before, at last to the default action: the end of the process.
void pass_on(int number, siginfo_t* info, void* context);

// Where the access went wrong; 0: nobody accessed anything, the signal was only sent. A handler that is still above
// ours sends the signal again after it has removed itself, and then the address is what the thread's context still
// tells.
uint64_t faulting_address(const siginfo_t* info, const void* context);

// Whether the instruction wanted to write; also true where the processor does not say.
bool faulted_writing(const void* context);

}  // namespace tierpage
