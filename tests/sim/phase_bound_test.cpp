// The bound by phases on programs whose least time can be told by hand.
#include "estimate/phase_bound.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>

namespace tierpage::estimate {
namespace {

constexpr double kRate = 1e9;  // bytes a second: a megabyte takes a millisecond
constexpr uint64_t kMegabyte = 1000 * 1000;

PhaseBound bound_of(const std::string& lines, uint64_t megabytes) {
  std::istringstream text("tierpage-program 1\n" + lines);
  Program program;
  const Status status = read_program(text, &program);
  EXPECT_TRUE(status.ok()) << status.message;
  return bound_by_phases(program, megabytes * kMegabyte, kRate, kRate);
}

std::string weights(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "A " + std::to_string(i) + " 1000000\n";
  return text;
}

TEST(PhaseBound, ReadingInTurnTakesAsLongAsWhatDoesNotFit) {
  std::string text = weights(10) + "L\n";
  for (int i = 0; i < 10; ++i) text += "O mm 100 " + std::to_string(i) + "r\n";
  text += "S\n";
  // Ten megabytes, four stay: six milliseconds, while the kernels take one.
  EXPECT_NEAR(bound_of(text, 4).seconds, 0.006, 1e-9);
  EXPECT_NEAR(bound_of(text, 4).compute_seconds, 0.001, 1e-9);
  EXPECT_NEAR(bound_of(text, 10).seconds, 0.001, 1e-9) << "all fits";
}

// A phase of long kernels over one weight, then one that reads all: the link is idle in the first for want of room.
TEST(PhaseBound, APhaseWithoutRoomCannotHelpTheNext) {
  std::string text = weights(10) + "L\n";
  for (int i = 0; i < 10; ++i) text += "O long 1000 0r\n";
  for (int i = 0; i < 10; ++i) text += "O short 1 " + std::to_string(i) + "r\n";
  text += "S\n";
  // Six megabytes have to come up among the short ones; bytes over the rate would give the long kernels' ten.
  EXPECT_NEAR(bound_of(text, 4).seconds, 0.010 + 0.006, 0.00011);
}

TEST(PhaseBound, WhatIsMadeAndUsedLaterHasToGoDown) {
  std::string text = weights(1) + "L\n";
  for (int i = 1; i <= 10; ++i) text += "O make 1 0r +" + std::to_string(i) + ":1000000\n";
  for (int i = 10; i >= 1; --i) text += "O use 1 " + std::to_string(i) + "r\nF " + std::to_string(i) + "\n";
  text += "S\n";
  // Ten are made while four fit: six go down, and come up again afterwards. What dies unused costs nothing.
  EXPECT_NEAR(bound_of(text, 4).seconds, 0.012, 0.0002);
  std::string dead = weights(1) + "L\n";
  for (int i = 1; i <= 10; ++i) dead += "O make 1 0r +1:1000000\nF 1\n";
  EXPECT_NEAR(bound_of(dead + "S\n", 4).seconds, 10e-6, 1e-9);
}

}  // namespace
}  // namespace tierpage::estimate
