// Counts every byte of PyTorch's CPU allocator, from outside of PyTorch.
//
// A c10::Allocator that asks the one before it and keeps books: eager code, autograd's threads,
// compiled code and scratch inside kernels all pass through it. Blocks end through `finish`, whoever
// frees them and whenever, so uninstalling while blocks are alive is safe; the books are never
// destroyed, because a block may end after everything else.
//
// One mutex guards the books. No Python runs under it: a stack is gathered before it is taken, and
// only in threads that Python knows. Python watches thresholds by waiting, from a thread of its own.

#include <Python.h>

#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT extern "C" __declspec(dllexport)
#endif

namespace {

using i64 = int64_t;
using i32 = int32_t;

// The layouts of Tally, Row and Event are those of the ctypes structures in native.py.
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

struct Row {
  i64 address, nbytes, number, born;
  i32 module, op, stack, unused;
};

struct Event {
  i64 time, address, change;
  i32 module, op, stack, thread;
};

struct Live {
  i64 nbytes, number, born;
  i32 module, op, stack;
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

thread_local i32 module_now = 0;
thread_local std::vector<const char*> ops_now;
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
  std::unordered_map<void*, Live> live;
  Tally total;
  std::vector<Tally> modules, ops;
  std::vector<std::string> op_names;
  std::unordered_map<std::string, i32> op_ids;
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

  void note(i64 address, i64 change, const Live& row) {
    if (max_events == 0) return;
    if (thread_number < 0) thread_number = next_thread++;
    const Event event{now(), address, change, row.module, row.op, row.stack, thread_number};
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

  void enter(void* address, const Live& row) {
    // An address that is still in the books was freed past us, as that of a storage that is older
    // than they are.
    leave(address, 0);
    live.emplace(address, row);
    total.add(row.nbytes);
    at(modules, row.module).add(row.nbytes);
    at(ops, row.op).add(row.nbytes);
    for (auto& scope : scopes) scope.second.add(row.nbytes);
    note(reinterpret_cast<i64>(address), row.nbytes, row);
  }

  // Removes what lies at an address, if it has this number; 0 is any.
  void leave(void* address, i64 number) {
    auto found = live.find(address);
    if (found == live.end() || (number != 0 && found->second.number != number)) return;
    const Live row = found->second;
    live.erase(found);
    total.remove(row.nbytes);
    at(modules, row.module).remove(row.nbytes);
    at(ops, row.op).remove(row.nbytes);
    for (auto& scope : scopes) scope.second.remove(row.nbytes);
    note(reinterpret_cast<i64>(address), -row.nbytes, row);
    if (!thresholds.empty()) check_thresholds();
  }
};

// Immortal: see above.
Books& books() {
  static Books* b = new Books();
  return *b;
}

c10::Allocator* before = nullptr;

// Returns the number of the calling thread's stack, 0 if it has none. Takes the GIL.
i32 gather_stack(i32 depth) {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (thread == nullptr) return 0;
  const PyGILState_STATE held = PyGILState_Ensure();
  std::vector<Frame> stack;
  PyFrameObject* frame = PyThreadState_GetFrame(thread);
  while (frame != nullptr) {
    if (static_cast<i32>(stack.size()) < depth) {
#if PY_VERSION_HEX >= 0x030B0000
      stack.push_back({PyFrame_GetCode(frame), PyFrame_GetLasti(frame)});
#else
      stack.push_back({PyFrame_GetCode(frame), PyFrame_GetLineNumber(frame)});
#endif
    }
    PyFrameObject* back =
        static_cast<i32>(stack.size()) < depth ? PyFrame_GetBack(frame) : nullptr;
    Py_DECREF(frame);
    frame = back;
  }
  Books& b = books();
  auto [entry, fresh] = b.stack_ids.emplace(stack, static_cast<i32>(b.stacks.size()) + 1);
  if (fresh)
    b.stacks.push_back(&entry->first);  // keeps the references to the code
  else
    for (const Frame& f : stack) Py_DECREF(f.code);
  const i32 id = entry->second;
  PyGILState_Release(held);
  return id;
}

void begin(void* address, i64 nbytes) {
  Books& b = books();
  const i32 depth = b.stack_depth.load(std::memory_order_relaxed);
  const i32 stack = depth > 0 ? gather_stack(depth) : 0;
  bool crossed = false;
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    if (!b.on) return;
    const i32 op = b.op_id(ops_now.empty() ? "" : ops_now.back());
    b.enter(address, {nbytes, b.total.allocs + 1, now(), module_now, op, stack});
    if (!b.thresholds.empty()) crossed = b.check_thresholds();
  }
  if (crossed) b.crossed.notify_all();
}

void finish(void* address) {
  Books& b = books();
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    b.leave(address, 0);
  }
  // After the books: the address may be handed out again at once.
  before->raw_deallocate(address);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    void* address = before->raw_allocate(nbytes);
    if (address != nullptr) begin(address, static_cast<i64>(nbytes));
    return {address, address, &finish, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &finish; }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }
};

CountingAllocator* counting() {
  static CountingAllocator* a = new CountingAllocator();
  return a;
}

// Operators that only fetch memory for another one, which is the one to name.
bool fetches_memory(const char* name) {
  static const char* const names[] = {"aten::empty", "aten::new_empty", "aten::resize_",
                                      "aten::set_",  "aten::zero_",     "aten::fill_"};
  for (const char* prefix : names)
    if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
  return false;
}

std::unique_ptr<at::ObserverContext> enter_op(const at::RecordFunction& fn) {
  const char* name = fn.name();
  if (!ops_now.empty() && fetches_memory(name)) name = ops_now.back();
  ops_now.push_back(name);
  return nullptr;
}

void leave_op(const at::RecordFunction&, at::ObserverContext*) {
  if (!ops_now.empty()) ops_now.pop_back();
}

at::CallbackHandle op_callback = at::INVALID_CALLBACK_HANDLE;

#ifndef _WIN32
void lock_books() { books().mutex.lock(); }
void unlock_books() { books().mutex.unlock(); }
#endif

template <typename T, typename U>
i64 copy_out(const std::vector<T>& from, U* out, i64 room) {
  const i64 n = std::min<i64>(room, static_cast<i64>(from.size()));
  std::copy_n(from.begin(), n, out);
  return static_cast<i64>(from.size());
}

}  // namespace

// Returns 0, or 1 if it is installed already.
EXPORT int bitnet_install(i64 max_events, i32 stack_depth) {
  Books& b = books();
  static bool first = true;
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    if (b.on) return 1;
    b.live.clear();
    b.total = Tally();
    b.modules.clear();
    b.ops.clear();
    b.scopes.clear();
    b.events.clear();
    b.thresholds.clear();
    b.oldest = 0;
    b.dropped = b.crossings = 0;
    b.max_events = static_cast<size_t>(max_events);
    b.stack_depth = stack_depth;
    b.on = true;
  }
#ifndef _WIN32
  if (first) pthread_atfork(lock_books, unlock_books, unlock_books);
#endif
  first = false;
  op_callback = at::addGlobalCallback(
      at::RecordFunctionCallback(enter_op, leave_op)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  if (before == nullptr) before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(counting(), 100);
  return 0;
}

EXPORT void bitnet_uninstall() {
  Books& b = books();
  if (!b.on) return;
  // Somebody may have put an allocator of their own in front of ours since.
  if (c10::GetCPUAllocator() == counting()) c10::SetCPUAllocator(before, 100);
  at::removeCallback(op_callback);
  {
    std::lock_guard<std::mutex> guard(b.mutex);
    b.on = false;
    b.stack_depth = 0;
  }
  b.crossed.notify_all();
}

EXPORT void bitnet_total(Tally* out, i64* dropped) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  *out = b.total;
  *dropped = b.dropped;
}

EXPORT int bitnet_knows(void* address) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return b.live.count(address) != 0;
}

EXPORT void bitnet_reset_peak() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.total.peak = b.total.current;
  for (auto* tallies : {&b.modules, &b.ops})
    for (Tally& tally : *tallies) tally.peak = tally.current;
}

EXPORT i32 bitnet_set_module(i32 id) {
  const i32 old = module_now;
  module_now = id;
  return old;
}

EXPORT i32 bitnet_open_scope() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.scopes[++b.next_scope];
  return b.next_scope;
}

EXPORT void bitnet_read_scope(i32 id, Tally* out) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  *out = b.scopes[id];
}

EXPORT void bitnet_close_scope(i32 id) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.scopes.erase(id);
}

// The three readers return how many there are and write at most `room` of them.
EXPORT i64 bitnet_tallies(i32 of_ops, Tally* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  return copy_out(of_ops ? b.ops : b.modules, out, room);
}

EXPORT i64 bitnet_live(Row* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  i64 n = 0;
  for (const auto& [address, row] : b.live) {
    if (n < room)
      out[n] = {reinterpret_cast<i64>(address), row.nbytes, row.number, row.born,
                row.module,                     row.op,     row.stack,  0};
    ++n;
  }
  return n;
}

EXPORT i64 bitnet_events(Event* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const i64 n = static_cast<i64>(b.events.size());
  for (i64 i = 0; i < std::min(n, room); ++i) out[i] = b.events[(b.oldest + i) % n];
  return n;
}

EXPORT i64 bitnet_op_name(i32 id, char* out, i64 room) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const std::string& name = b.op_names[id];
  std::strncpy(out, name.c_str(), room);
  return static_cast<i64>(name.size());
}

// Enters a storage that is older than the books; returns its number.
EXPORT i64 bitnet_add(void* address, i64 nbytes, i32 module, const char* op) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const i64 number = b.total.allocs + 1;
  b.enter(address, {nbytes, number, now(), module, b.op_id(op), 0});
  return number;
}

EXPORT void bitnet_remove(void* address, i64 number) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.leave(address, number);
}

EXPORT void bitnet_set_thresholds(const i64* bytes, i64 n) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  b.thresholds.clear();
  for (i64 i = 0; i < n; ++i) b.thresholds.push_back({bytes[i], 0, b.total.current >= bytes[i]});
}

// How often each threshold has been crossed upwards since they were set.
EXPORT void bitnet_crossings(i64* out, i64 n) {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  for (i64 i = 0; i < std::min(n, static_cast<i64>(b.thresholds.size())); ++i)
    out[i] = b.thresholds[i].crossings;
}

// Waits until there are more than `seen` crossings, tracking ends or `seconds` have passed; returns
// how many there are. Called without the GIL.
EXPORT i64 bitnet_wait_crossing(i64 seen, double seconds) {
  Books& b = books();
  std::unique_lock<std::mutex> guard(b.mutex);
  b.crossed.wait_for(guard, std::chrono::duration<double>(seconds),
                     [&] { return b.crossings > seen || !b.on; });
  return b.crossings;
}

// Bytes of the books themselves.
EXPORT i64 bitnet_overhead() {
  Books& b = books();
  std::lock_guard<std::mutex> guard(b.mutex);
  const i64 node = sizeof(std::pair<void* const, Live>) + sizeof(void*);
  return static_cast<i64>(b.live.size()) * node +
         static_cast<i64>(b.live.bucket_count() * sizeof(void*)) +
         static_cast<i64>(b.events.capacity() * sizeof(Event));
}

// A list of (file, line, function), innermost first; called with the GIL.
EXPORT PyObject* bitnet_stack(i32 id) {
  const std::vector<Frame>& stack = *books().stacks[id - 1];
  PyObject* list = PyList_New(0);
  for (const Frame& f : stack) {
    PyObject* code = reinterpret_cast<PyObject*>(f.code);
    PyObject* file = PyObject_GetAttrString(code, "co_filename");
    PyObject* name = PyObject_GetAttrString(code, "co_name");
#if PY_VERSION_HEX >= 0x030B0000
    const int line = PyCode_Addr2Line(f.code, f.place);
#else
    const int line = f.place;
#endif
    PyObject* entry = file && name ? Py_BuildValue("(OiO)", file, line, name) : nullptr;
    Py_XDECREF(file);
    Py_XDECREF(name);
    const int failed = entry == nullptr || PyList_Append(list, entry);
    Py_XDECREF(entry);
    if (failed) {
      Py_DECREF(list);
      return nullptr;
    }
  }
  return list;
}
