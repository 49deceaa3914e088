# Given to CMake as CMAKE_PROJECT_INCLUDE by ci/cpp_test: the library's headers are parsed once a target, not once a
# file, which is a quarter of a sanitized build. The packages themselves know nothing of it.
function(precompile_all)
  get_property(targets DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    get_target_property(sources ${target} SOURCES)
    list(LENGTH sources count)
    if(NOT type MATCHES "STATIC_LIBRARY|EXECUTABLE" OR count LESS 8)
      continue()
    endif()
    target_precompile_headers(${target} PRIVATE
      <algorithm> <array> <atomic> <chrono> <cmath> <condition_variable> <cstdint> <cstring> <deque> <filesystem>
      <functional> <map> <memory> <mutex> <optional> <random> <shared_mutex> <span> <string> <thread>
      <unordered_map> <vector>)
    foreach(source IN LISTS sources) # one with flags of its own cannot use what was made with others
      get_source_file_property(options ${source} COMPILE_OPTIONS)
      if(options)
        set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
      endif()
    endforeach()
  endforeach()
endfunction()
cmake_language(DEFER CALL precompile_all)
