"""How fast can a CUDA kernel run at best? A static model read off its machine code (SASS); no GPU needed.

docs/sass_model.md says what it prints, where its numbers come from and what it cannot see. In the order of use:

- `disassembly`: a cubin's kernels as lists of `Instruction`, with the compiler's control codes
- `machine`: cards, pipes, what an instruction costs which pipe, latencies
- `control_flow`: basic blocks, natural loops, the parts that the roles of a warp-specialised kernel run
- `bounds`: cycles per pipe, the busiest pipe, loop-carried chains, occupancy
- `simulation`: in-order issue of one sub-partition's warps
- `predict`: all of it for one kernel and one `Launch`
- `kernels/`: the launches of this project's kernels that are predicted
"""
