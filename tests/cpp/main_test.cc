// GoogleTest's main, plus the roles that tests start in processes of their own: this same program.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "child_process.h"
#include "support.h"

int main(int argc, char** argv) {
  if (argc > 1 && std::strncmp(argv[1], "--role=", 7) == 0) {
    return hicache::testing::run_role(argv[1] + 7, std::vector<std::string>(argv + 2, argv + argc));
  }
  ::testing::InitGoogleTest(&argc, argv);
  if (!::testing::GTEST_FLAG(list_tests)) {
    std::printf("HICACHE_SEED=%llu\n", static_cast<unsigned long long>(hicache::testing::seed()));
  }
  return RUN_ALL_TESTS();
}
