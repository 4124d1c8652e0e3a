# From the boot loader to 64-bit Rust (AT&T syntax).
#
# Entered in 32-bit protected mode, flat segments, paging off, by Multiboot 1 (3.2: eax =
# 0x2badb002, ebx = information) or PVH (ebx = hvm_start_info). Leaves with paging on: the
# first 4 GiB mapped to themselves by 2 MiB pages, writable and executable.

    .section .boot.header, "a"
    .balign 4
multiboot_header:
    .long 0x1badb002
    .long 0x00010003                    # modules on pages, memory map, address fields
    .long -(0x1badb002 + 0x00010003)
    .long multiboot_header
    .long __image_start
    .long __load_end
    .long __bss_end
    .long _start

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad _start

    .section .boot, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    movl %eax, %ebp
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    movl %ebp, boot_magic
    movl %ebx, boot_info
    movl $boot_stack_top, %esp

    # Level 4 and 3, then 2048 large pages.
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 0x0003, boot_pdpt
    movl $boot_pd + 0x1003, boot_pdpt + 8
    movl $boot_pd + 0x2003, boot_pdpt + 16
    movl $boot_pd + 0x3003, boot_pdpt + 24
    movl $boot_pd, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    movl %cr4, %eax
    orl $0x20, %eax                     # PAE
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl %cr0, %eax
    andl $~0x6000000c, %eax             # caches on, no EM, no TS
    orl $0x80010023, %eax               # PG, WP, NE, MP, PE
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x08, $start64

    .code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    movl $boot_stack_top, %esp
    movl boot_magic, %edi
    movl boot_info, %esi
    call boot_start
2:  hlt
    jmp 2b

    .data
    .balign 16
    .globl boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08: code, 64-bit
    .quad 0x00cf93000000ffff            # 0x10: data
    .quad 0, 0                          # 0x18: task state segment, filled in by idt.rs
boot_gdt_pointer:
    .word boot_gdt_pointer - boot_gdt - 1
    .quad boot_gdt

    .bss
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .skip 64 * 1024
boot_stack_top:
boot_magic:
    .skip 4
boot_info:
    .skip 4

# Interrupt entry: 256 stubs of 16 bytes; each leaves an error code and, by its call, an
# address that tells the vector. Then the general registers, as idt::Frame has them.
    .text
    .balign 16
    .globl isr_table
isr_table:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    call isr_common
    .set vector, vector + 1
    .endr

    .balign 16
isr_common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq 120(%rsp), %rax
    subq $isr_table, %rax
    shrq $4, %rax
    movq %rax, 120(%rsp)
    movq %rsp, %rdi
    call idt_dispatch
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

# exec_enter(rdi = &mut Registers, rsi = code): loads the registers, calls the code, stores
# the registers. A fault comes back at exec_out with the registers already stored.
    .globl exec_enter
exec_enter:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    movq %rsp, exec_sp(%rip)
    movq %rsi, exec_target(%rip)
    pushq 120(%rdi)
    movq 0(%rdi), %rax
    movq 8(%rdi), %rbx
    movq 16(%rdi), %rcx
    movq 24(%rdi), %rdx
    movq 32(%rdi), %rsi
    movq 48(%rdi), %rbp
    movq 56(%rdi), %r8
    movq 64(%rdi), %r9
    movq 72(%rdi), %r10
    movq 80(%rdi), %r11
    movq 88(%rdi), %r12
    movq 96(%rdi), %r13
    movq 104(%rdi), %r14
    movq 112(%rdi), %r15
    movq 40(%rdi), %rdi
    popfq
    call *exec_target(%rip)
    pushfq
    cli
    pushq %rdi
    movq exec_sp(%rip), %rdi
    movq (%rdi), %rdi
    movq %rax, 0(%rdi)
    movq %rbx, 8(%rdi)
    movq %rcx, 16(%rdi)
    movq %rdx, 24(%rdi)
    movq %rsi, 32(%rdi)
    movq %rbp, 48(%rdi)
    movq %r8, 56(%rdi)
    movq %r9, 64(%rdi)
    movq %r10, 72(%rdi)
    movq %r11, 80(%rdi)
    movq %r12, 88(%rdi)
    movq %r13, 96(%rdi)
    movq %r14, 104(%rdi)
    movq %r15, 112(%rdi)
    popq %rax
    movq %rax, 40(%rdi)
    popq %rax
    movq %rax, 120(%rdi)
    .globl exec_out
exec_out:
    movq exec_sp(%rip), %rsp
    pushq $2
    popfq
    popq %rdi
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

    .bss
    .balign 8
    .globl exec_sp
exec_sp:
    .skip 8
exec_target:
    .skip 8
