# The texts that travel inside the executable, because generated kernels are made of them: <name>_h_text, by scripts/embed.cmake.
# cuda_embed(VAR) sets VAR to the .c files that hold them.
set(CUDA_EMBED_DIR ${CMAKE_CURRENT_LIST_DIR})
function(cuda_embed var)
  set(made "")
  foreach(path
    device/gpu attention/flash_params attention/flash_interval attention/flash_common attention/flash_kernel
    attention/flash_backward attention/flash_mma attention/flash_mma_forward attention/flash_mma_backward)
    set(in ${CUDA_EMBED_DIR}/${path}.h)
    get_filename_component(name ${path} NAME)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${name}_h.c)
    add_custom_command(OUTPUT ${out}
      COMMAND ${CMAKE_COMMAND} -DIN=${in} -DOUT=${out} -P ${CMAKE_SOURCE_DIR}/scripts/embed.cmake
      DEPENDS ${in} ${CMAKE_SOURCE_DIR}/scripts/embed.cmake)
    list(APPEND made ${out})
  endforeach()
  set(${var} ${made} PARENT_SCOPE)
endfunction()
