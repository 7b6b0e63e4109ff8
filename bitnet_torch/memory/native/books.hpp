// The books of the allocator tracker: what is alive, what has been, by module, operator, stack and scope.
// Every member function runs under `mutex`, which the caller holds, unless it says otherwise.
#pragma once
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "live_table.hpp"

namespace {

// The layouts of Tally and Event are those of the ctypes structures in native_library.py.
struct Tally {
  i64 current = 0, peak = 0, allocated = 0, freed = 0, allocs = 0, frees = 0;
  void add(i64 n) {
    current += n;
    allocated += n;
    ++allocs;
    if (current > peak) peak = current;
  }
  void remove(i64 n) {
    current -= n;
    freed += n;
    ++frees;
  }
};

struct Event {
  i64 time, address, change;
  i32 module, op, stack, thread;
};

struct Threshold {
  i64 bytes, crossings;
  bool above;
};

struct Frame {
  PyCodeObject* code;
  i32 place;  // of the instruction; the line in Pythons that do not tell it
  bool operator==(const Frame& other) const { return code == other.code && place == other.place; }
};

struct HashStack {
  size_t operator()(const std::vector<Frame>& stack) const {
    size_t h = 0;
    for (const Frame& f : stack)
      h = (h ^ (reinterpret_cast<size_t>(f.code) >> 4) ^ static_cast<size_t>(f.place)) *
          0x9E3779B97F4A7C15ull;
    return h;
  }
};

// Looks up text without making a string of it.
struct HashText {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

thread_local i32 module_now = 0;
thread_local i32 thread_number = -1;

i64 now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Books {
  std::mutex mutex;
  std::condition_variable crossed;
  std::atomic<bool> on{false};
  LiveTable live;
  Tally total;
  std::vector<Tally> modules, ops;
  std::vector<std::string> op_names;
  std::unordered_map<std::string, i32, HashText, std::equal_to<>> op_ids;
  // The number of the name that was last seen at an address with this hash.
  struct Seen {
    const char* name;
    i32 id;
  } seen[256] = {};
  std::unordered_map<i32, Tally> scopes;
  std::vector<Event> events;
  std::vector<Threshold> thresholds;
  size_t max_events = 0, oldest = 0;
  i64 dropped = 0, crossings = 0;
  i32 next_scope = 0, next_thread = 0;
  std::atomic<i32> stack_depth{0};
  // Guarded by the GIL, not by the mutex.
  std::unordered_map<std::vector<Frame>, i32, HashStack> stack_ids;
  std::vector<const std::vector<Frame>*> stacks;

  i32 op_id(const char* name) {
    Seen& last = seen[(reinterpret_cast<size_t>(name) * 0x9E3779B97F4A7C15ull) >> 56];
    // By address first; what lies there may have changed since.
    if (last.name != name || op_names[last.id] != name) last = {name, op_id_of_text(name)};
    return last.id;
  }

  i32 op_id_of_text(std::string_view name) {
    auto found = op_ids.find(name);
    if (found != op_ids.end()) return found->second;
    const i32 id = static_cast<i32>(op_names.size());
    op_names.emplace_back(name);
    op_ids.emplace(name, id);
    return id;
  }

  static Tally& at(std::vector<Tally>& tallies, i32 id) {
    if (static_cast<size_t>(id) >= tallies.size()) tallies.resize(id + 1);
    return tallies[id];
  }

  void note(i64 time, i64 change, const Row& row) {
    if (thread_number < 0) thread_number = next_thread++;
    const Event event{time,       row.address, change,    row.module,
                      row.op,     row.stack,   thread_number};
    if (events.size() < max_events) {
      events.push_back(event);
      return;
    }
    events[oldest] = event;
    oldest = (oldest + 1) % max_events;
    ++dropped;
  }

  // Usage that swings round a threshold crosses it once: it must fall by a twentieth in between.
  bool check_thresholds() {
    bool any = false;
    for (Threshold& t : thresholds) {
      const bool reached = total.current >= t.bytes;
      if (reached && !t.above) {
        ++t.crossings;
        ++crossings;
        any = true;
      }
      t.above = reached || (t.above && total.current >= t.bytes - t.bytes / 20);
    }
    return any;
  }

  void enter(const Row& row) {
    // An address that is still in the books was freed past us, as that of a storage that is older
    // than they are.
    leave(row.address, 0);
    live.add(row);
    total.add(row.nbytes);
    at(modules, row.module).add(row.nbytes);
    at(ops, row.op).add(row.nbytes);
    for (auto& scope : scopes) scope.second.add(row.nbytes);
    if (max_events != 0) note(row.born, row.nbytes, row);
  }

  // Removes what lies at an address, if it has this number; 0 is any.
  void leave(i64 address, i64 number) {
    const Row* found = live.find(address);
    if (found == nullptr || (number != 0 && found->number != number)) return;
    const Row row = *found;
    live.remove(address);
    total.remove(row.nbytes);
    at(modules, row.module).remove(row.nbytes);
    at(ops, row.op).remove(row.nbytes);
    for (auto& scope : scopes) scope.second.remove(row.nbytes);
    if (max_events != 0) note(now(), -row.nbytes, row);
    if (!thresholds.empty()) check_thresholds();
  }
};

// Immortal: a block may end after everything else.
Books& books() {
  static Books* b = new Books();
  return *b;
}

}  // namespace
