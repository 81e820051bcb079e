// Texts and options that Python hands to the engine. What is unknown, missing or of another kind is an error here.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "engine/runtime_options.h"

namespace tierpage {

// Each raises EngineError (kInvalidArgument) that names the text and those that are known.
Tier tier_named(const std::string& text);  // "device", "host", "nvme"
bool is_cuda(const std::string& device);   // "cpu" or "cuda"

const char* name_of(Verify verify);

// From a dict with exactly the keys of option_words().
RuntimeOptions options_of(const pybind11::dict& given);

// name of an option -> list of the words that it may be, empty where it is a value.
pybind11::dict option_words();

}  // namespace tierpage
