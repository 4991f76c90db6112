// Drover's own small thread pool. One thread owns it and calls run(); the workers help. Between
// runs a worker spins for a short while, since the next operation of a layer follows within
// microseconds, and then sleeps. Workers are not bound to cores: the system keeps them there when
// it is idle, and moves them out of the way of others when it is not.
//
// Who computes a task never shows in a result: tasks write disjoint outputs and fix their own
// order of summation.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace drover {

// The number of physical cores this process may use, at least 1.
int physical_cores();

class ThreadPool {
 public:
  // `threads` counts the caller too; 1 means that run() is a plain loop. Throws kUsage below 1 or
  // above 1024.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, worker) once for each task in [0, tasks), worker in [0, size()), and returns
  // when all are done. Tasks are handed out one by one in order. Not reentrant. The first exception
  // of a body is rethrown here after the others have stopped.
  void run(int64_t tasks, const std::function<void(int64_t task, int worker)>& body);

 private:
  void work(int worker);
  void drain(int worker);
  void stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};  // counts run() calls; a change is the call to work
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};

  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace drover
