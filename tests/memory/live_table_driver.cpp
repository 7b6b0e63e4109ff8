// Drives the tracker's table of live blocks beside std::unordered_map, and prints what it costs.
#include <cstdio>
#include <random>
#include <unordered_map>

#include "live_table.hpp"

namespace {

LiveTable table;
std::unordered_map<i64, i64> model;  // address: number

bool same() {
  size_t seen = 0;
  bool right = table.size() == model.size();
  table.each([&](const Row& row) {
    auto found = model.find(row.address);
    right = right && found != model.end() && found->second == row.number;
    ++seen;
  });
  for (const auto& [address, number] : model) {
    const Row* row = table.find(address);
    right = right && row != nullptr && row->number == number;
  }
  return right && seen == model.size();
}

void turn(i64 address, i64 number) {
  if (model.erase(address)) {
    table.remove(address);
  } else {
    table.add({address, number % 7, number, 0, 0, 0, 0, 0});
    model.emplace(address, number);
  }
}

// What, added to an address, changes its hash in the low bits only, which are not kept.
i64 twin() {
  uint64_t inverse = 1;
  for (int bits = 1; bits < 64; bits *= 2) inverse *= 2 - inverse * 0x9E3779B97F4A7C15ull;
  return static_cast<i64>(inverse);
}

}  // namespace

int main() {
  std::mt19937_64 random(0);
  bool right = true;
  for (int round = 0; round < 40; ++round) {
    // Few addresses make long clusters and many ends, many make it grow; steps as malloc's.
    const i64 addresses = 10 << round % 8, step = round % 2 ? 64 : 4096;
    table.clear();
    model.clear();
    for (i64 number = 1; number <= 2000; ++number) {
      const i64 address = 0x7f0000000000 + step * static_cast<i64>(random() % addresses);
      turn(random() % 2 ? address : address + twin(), number);
      if (number % 50 == 0) right = right && same();
    }
    right = right && same() && table.find(1) == nullptr;
  }
  double most = 0;
  table = LiveTable();
  for (i64 n = 1; n <= 5000; ++n) {
    table.add({64 * n, 64, n, 0, 0, 0, 0, 0});
    if (n >= 100) most = std::max(most, static_cast<double>(table.bytes()) / static_cast<double>(n));
  }
  std::printf("%s, at most %.1f bytes a block\n", right ? "equal" : "DIFFERENT", most);
  return 0;
}
