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
  int pace = 1;  // kernels take so many times as long
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
      text << "O forward " << 400 * training.pace << " " << i << "r";
      if (training.saves) text << " +" << saved(i) << ":" << kBytes;
      text << "\n";
    }
    for (int i = layers; i-- > 0;) {
      text << "O backward " << 800 * training.pace << " " << i << "r";
      if (training.saves) text << " " << saved(i) << "r";
      text << " +" << gradient(i) << ":" << kBytes << "\n";
      if (training.saves) text << "F " << saved(i) << "\n";
    }
    for (int i = 0; i < layers; ++i) {
      text << "O step " << 30 * training.pace << " " << i << (training.frozen ? "r " : "w ") << layers + i << "w "
           << gradient(i) << "r\n";
      text << "F " << gradient(i) << "\n";
    }
    text << "S\n";
  }
  return read(text.str());
}

// Forwards of one token through a decoder of Llama's shape with 13 B parameters in bfloat16, after the weights were
// made. `prompt` > 0: each layer's keys and values grow by torch.cat, from so many tokens on; 0: they are too small to
// be paged.
struct Decoding {
  int layers = 40;
  int tokens = 12;
  int prompt = 0;
};

inline Program decoding_program(const Decoding& decoding) {
  constexpr long kWidth = 5120, kHidden = 13824, kVocabulary = 32000, kElement = 2;
  constexpr double kBytesPerMicrosecond = 3.6e6, kLaunchMicroseconds = 4;
  constexpr int kWeights = 7;  // of a layer: query, key, value, out, gate, up, down
  std::ostringstream text;
  const auto weight = [](int layer, int i) { return 2 + layer * kWeights + i; };
  const auto bytes_of = [&](int i) { return kElement * kWidth * (i < 4 ? kWidth : kHidden); };
  const auto product = [&](int id, long bytes) {
    text << "O mm " << static_cast<double>(bytes) / kBytesPerMicrosecond + kLaunchMicroseconds << " " << id << "r\n";
  };
  // Old and new take turns, as the allocator's addresses do.
  const auto cache = [&](int layer, int part, int turn) {
    return 2 + decoding.layers * kWeights + (layer * 2 + part) * 2 + turn % 2;
  };
  text << "tierpage-program 1\n";
  for (const int id : {0, 1}) text << "A " << id << " " << kElement * kWidth * kVocabulary << "\n";
  for (int layer = 0; layer < decoding.layers; ++layer) {
    for (int i = 0; i < kWeights; ++i) text << "A " << weight(layer, i) << " " << bytes_of(i) << "\n";
  }
  text << "S\n";
  for (int token = 0; token < decoding.tokens; ++token) {
    const long cache_bytes = kElement * kWidth * (decoding.prompt + token);
    const double cache_microseconds = 2 * static_cast<double>(cache_bytes) / kBytesPerMicrosecond + kLaunchMicroseconds;
    text << "O embedding 5 0r\n";
    for (int layer = 0; layer < decoding.layers; ++layer) {
      for (int i = 0; i < 3; ++i) product(weight(layer, i), bytes_of(i));
      for (int part = 0; part < 2 && decoding.prompt > 0; ++part) {
        text << "O cat " << cache_microseconds;
        if (token > 0) text << " " << cache(layer, part, token - 1) << "r";
        text << " +" << cache(layer, part, token) << ":" << cache_bytes << "\n";
        if (token > 0) text << "F " << cache(layer, part, token - 1) << "\n";
      }
      if (decoding.prompt > 0) {
        text << "O attention " << cache_microseconds << " " << cache(layer, 0, token) << "r " << cache(layer, 1, token)
             << "r\n";
      }
      for (int i = 3; i < kWeights; ++i) product(weight(layer, i), bytes_of(i));
    }
    product(1, kElement * kWidth * kVocabulary);
    text << "S\n";
  }
  return read(text.str());
}

}  // namespace tierpage::estimate
