// Text on the debug console and on the first serial port.

.section .text.guest, "ax"
.code32

// 8 data bits, no parity, no interrupts from the serial port.
init_console:
    push edx
    mov dx, 0x3fb
    mov al, 3
    out dx, al
    mov dx, 0x3f9
    xor al, al
    out dx, al
    pop edx
    ret

// Prints the byte in AL.
put_char:
    push ecx
    push edx
    out 0xe9, al
    mov ah, al
    mov ecx, 100000
    mov dx, 0x3fd
2:  in al, dx
    test al, 0x20
    jnz 3f
    loop 2b
3:  mov al, ah
    mov dx, 0x3f8
    out dx, al
    pop edx
    pop ecx
    ret

// Prints the zero-terminated text at ESI.
put_text:
    pushfd
    push eax
    push esi
2:  mov al, [esi]
    inc esi
    test al, al
    jz 3f
    call put_char
    jmp 2b
3:  pop esi
    pop eax
    popfd
    ret

put_line_end:
    push eax
    mov al, '\n'
    call put_char
    pop eax
    ret

// Prints AL as two hexadecimal digits.
put_byte:
    push eax
    shr al, 4
    call put_digit
    pop eax
    push eax
    call put_digit
    pop eax
    ret

// Prints the low four bits of AL as a hexadecimal digit.
put_digit:
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe put_char
    add al, 'a' - '9' - 1
    jmp put_char

// Prints EAX as eight hexadecimal digits.
put_hex:
    push ecx
    mov ecx, 4
2:  rol eax, 8
    call put_byte
    loop 2b
    pop ecx
    ret
