// A function or variable of a library that was loaded at run time, by its name.
#pragma once

#include <dlfcn.h>

namespace tierpage {

// Null where the library does not have it.
template <class Symbol>
void look_up(void* library, const char* name, Symbol& symbol) {
  symbol = reinterpret_cast<Symbol>(dlsym(library, name));
}

}  // namespace tierpage
