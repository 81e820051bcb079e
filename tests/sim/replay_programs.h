// The programs that the replay's tests run: recorded ones, and a training step in small.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "estimate/program.h"

namespace tierpage::estimate {

inline Program read(const std::string& text) {
  std::istringstream stream(text);
  Program program;
  const Status status = read_program(stream, &program);
  EXPECT_TRUE(status.ok()) << status.message;
  return program;
}

inline Program read_recorded(const char* name) {
  std::ifstream file(std::string(TIERPAGE_PROGRAMS) + "/" + name);
  Program program;
  const Status status = read_program(file, &program);
  EXPECT_TRUE(status.ok()) << status.message;
  return program;
}

// A training step in small, in layers of 32 MiB: weights are read forwards and backwards, each has a state that is
// rewritten at the end. `saves`: what the forward pass saves is used in the backward pass, last saved first; near and
// far uses side by side. `frozen`: only the states are written, as with adapters beside a frozen model.
struct Training {
  int layers = 0;
  int steps = 3;
  bool saves = false;
  bool frozen = false;
};

inline Program training_program(const Training& training) {
  constexpr int kBytes = 32 << 20;
  const int layers = training.layers;
  std::ostringstream text;
  const auto saved = [&](int i) { return 3 * layers + i; };
  const auto gradient = [&](int i) { return 2 * layers + i; };
  text << "tierpage-program 1\n";
  for (int i = 0; i < 2 * layers; ++i) text << "A " << i << " " << kBytes << "\n";
  text << "S\n";
  for (int step = 0; step < training.steps; ++step) {
    if (step == training.steps - 1) text << "L\n";
    for (int i = 0; i < layers; ++i) {
      text << "O forward 400 " << i << "r";
      if (training.saves) text << " +" << saved(i) << ":" << kBytes;
      text << "\n";
    }
    for (int i = layers; i-- > 0;) {
      text << "O backward 800 " << i << "r";
      if (training.saves) text << " " << saved(i) << "r";
      text << " +" << gradient(i) << ":" << kBytes << "\n";
      if (training.saves) text << "F " << saved(i) << "\n";
    }
    for (int i = 0; i < layers; ++i) {
      text << "O step 30 " << i << (training.frozen ? "r " : "w ") << layers + i << "w " << gradient(i) << "r\n";
      text << "F " << gradient(i) << "\n";
    }
    text << "S\n";
  }
  return read(text.str());
}

}  // namespace tierpage::estimate
