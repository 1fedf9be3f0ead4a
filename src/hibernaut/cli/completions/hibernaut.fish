# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of hibernaut for fish 3.1 or newer. The protocol is described in hibernaut/cli/suggest.py.

function __hibernaut_complete
    set -l current (commandline -ct)
    set -l words (commandline -opc) $current
    set -l found (_HIBERNAUT_COMPLETE=words $words[1] $words[2..-1] 2>/dev/null)
    set -l path (string replace --regex '^[^=]*=' '' -- $current)
    set -l prefix (string sub --length (math (string length -- $current) - (string length -- $path)) -- $current)
    switch "$found[1]"
        case files
            for one in (__fish_complete_path $path)
                echo $prefix$one
            end
        case folders
            for one in (__fish_complete_directories $path)
                echo $prefix$one
            end
    end
    printf '%s\n' $found[2..-1]
end

complete --command hibernaut --no-files --arguments '(__hibernaut_complete)'
