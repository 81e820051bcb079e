// Looking at a pager changes nothing: whoever reads statistics decides nothing.
#include "manual_world.h"

namespace tierpage {
namespace {

// A cycle that repeats, with and without pressure. While all fits nobody plans, and a look must not either.
TEST(Look, TheNameOfThePolicyMakesNoPlan) {
  for (const uint64_t device_pages : {4u, 16u}) {
    ManualWorld world(small_config(device_pages, 32, 0));
    std::vector<RegionId> regions;
    for (int i = 0; i < 8; ++i) regions.push_back(world.make());
    const SlotId slot = world.pager.add_slot();
    for (int use = 0; use < 400; ++use) {
      world.begin(slot, {{regions[static_cast<size_t>(use) % 8], AccessMode::kRead}});
      world.complete_all();
      ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
      world.end(slot);
      world.complete_all();
      const uint64_t uses_read = world.pager.foresight().predictor().predicted_uses() +
                                 world.pager.foresight().predictor().mispredicted_uses();
      const bool planned = world.pager.foresight().plan().valid();
      world.pager.policy_in_force();
      EXPECT_EQ(world.pager.foresight().predictor().predicted_uses() +
                    world.pager.foresight().predictor().mispredicted_uses(),
                uses_read);
      EXPECT_EQ(world.pager.foresight().plan().valid(), planned);
    }
    EXPECT_EQ(world.pager.foresight().predictor().matched(), device_pages == 4);
  }
}

}  // namespace
}  // namespace tierpage
