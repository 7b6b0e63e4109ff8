// Eight threads allocate and free through the tracker while others read its books; built with ThreadSanitizer, which
// ends the program with status 66 at the first race. Python is not part of it: no stacks are asked for.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

struct Tally {
  int64_t current, peak, allocated, freed, allocs, frees;
};
struct Row {
  int64_t address, nbytes, number, born;
  int32_t module, op, stack, unused;
};
struct Event {
  int64_t time, address, change;
  int32_t module, op, stack, thread;
};

extern "C" {
int bitnet_install(int64_t, int32_t);
void bitnet_uninstall();
void bitnet_total(Tally*, int64_t*);
int bitnet_knows(void*);
void bitnet_reset_peak();
int32_t bitnet_set_module(int32_t);
int32_t bitnet_open_scope();
void bitnet_read_scope(int32_t, Tally*);
void bitnet_close_scope(int32_t);
int64_t bitnet_tallies(int32_t, Tally*, int64_t);
int64_t bitnet_live(Row*, int64_t);
int64_t bitnet_events(Event*, int64_t);
int64_t bitnet_add(void*, int64_t, int32_t, const char*);
void bitnet_remove(void*, int64_t);
void bitnet_set_thresholds(const int64_t*, int64_t);
void bitnet_crossings(int64_t*, int64_t);
int64_t bitnet_wait_crossing(int64_t, double);
int64_t bitnet_overhead();
}

// What the tracker wants of Python where stacks are asked for, which they are not.
#define ABSENT(name) \
  extern "C" void name() { std::abort(); }
ABSENT(PyGILState_GetThisThreadState)
ABSENT(PyGILState_Ensure)
ABSENT(PyGILState_Release)
ABSENT(PyThreadState_GetFrame)
ABSENT(PyFrame_GetCode)
ABSENT(PyFrame_GetLasti)
ABSENT(PyFrame_GetLineNumber)
ABSENT(PyFrame_GetBack)
ABSENT(PyList_New)
ABSENT(PyList_Append)
ABSENT(PyObject_GetAttrString)
ABSENT(PyCode_Addr2Line)
ABSENT(Py_BuildValue)
ABSENT(_Py_Dealloc)

namespace {

constexpr int kThreads = 8, kTurns = 2000, kShared = 16;
std::mutex shared_mutex;
std::vector<c10::DataPtr> shared;  // blocks that end in another thread than they began in
std::atomic<bool> done{false};

void churn(int number) {
  c10::Allocator* allocator = c10::GetCPUAllocator();
  std::vector<c10::DataPtr> own;
  for (int turn = 0; turn < kTurns; ++turn) {
    const int32_t before = bitnet_set_module(number);
    own.push_back(allocator->allocate(64 + (turn * 37 + number) % 4096));
    bitnet_set_module(before);
    if (own.size() > 8) own.erase(own.begin());
    std::lock_guard<std::mutex> guard(shared_mutex);
    if (shared.size() < kShared)
      shared.push_back(std::move(own.back()));
    else
      shared.erase(shared.begin());
  }
}

void read() {
  std::vector<Tally> tallies(64);
  std::vector<Row> rows(256);
  std::vector<Event> events(256);
  int64_t thresholds[2] = {1000, 100000}, crossings[2], dropped, seen = 0;
  static char old[64];
  bitnet_set_thresholds(thresholds, 2);
  while (!done) {
    const int32_t scope = bitnet_open_scope();
    const int64_t number = bitnet_add(old, sizeof old, 0, "older");
    bitnet_total(tallies.data(), &dropped);
    bitnet_tallies(0, tallies.data(), 64);
    bitnet_tallies(1, tallies.data(), 64);
    bitnet_live(rows.data(), 256);
    bitnet_events(events.data(), 256);
    bitnet_knows(rows.data());
    bitnet_overhead();
    bitnet_reset_peak();
    bitnet_crossings(crossings, 2);
    seen = bitnet_wait_crossing(seen, 0.0001);
    bitnet_read_scope(scope, tallies.data());
    bitnet_close_scope(scope);
    bitnet_remove(old, number);
  }
}

// A round of counting, whose last blocks end after it.
bool round() {
  if (bitnet_install(500, 0) != 0) return false;
  done = false;
  std::vector<std::thread> threads;
  for (int n = 0; n < kThreads; ++n) threads.emplace_back(churn, n);
  std::thread reader(read);
  for (std::thread& thread : threads) thread.join();
  done = true;
  reader.join();
  Tally total;
  int64_t dropped, live = 0;
  bitnet_total(&total, &dropped);
  std::vector<Row> rows(kShared);
  const int64_t count = bitnet_live(rows.data(), kShared);
  for (int64_t i = 0; i < count; ++i) live += rows[i].nbytes;
  bitnet_uninstall();
  std::printf("%lld allocations, %lld bytes live in %lld blocks\n", static_cast<long long>(total.allocs),
              static_cast<long long>(total.current), static_cast<long long>(count));
  return count == static_cast<int64_t>(shared.size()) && live == total.current &&
         total.allocated - total.freed == total.current && total.allocs - total.frees == count &&
         total.allocs >= int64_t{kThreads} * kTurns;
}

}  // namespace

int main() {
  bool sound = round();
  shared.clear();
  sound = round() && sound;
  shared.clear();
  return sound ? 0 : 1;
}
