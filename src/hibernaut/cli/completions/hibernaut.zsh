#compdef hibernaut
# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of hibernaut for zsh. The protocol is described in hibernaut/cli/suggest.py.

_hibernaut() {
    local -a found
    local line
    found=("${(@f)$(_HIBERNAUT_COMPLETE=words ${~words[1]} "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    local by_shell=$found[1]
    local -a described
    for line in "${(@)found[2,-1]}"; do
        if [[ $line == *$'\t'* ]]; then
            described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        else
            described+=("${line//:/\\:}")
        fi
    done
    local -a options
    [[ $#described == 1 && $described[1] == *= ]] && options=(-S '')
    (($#described)) && _describe -t hibernaut hibernaut described $options
    case $by_shell in
        files) compset -P '*='; _files ;;
        folders) compset -P '*='; _files -/ ;;
    esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _hibernaut "$@"
else
    compdef _hibernaut hibernaut
fi
